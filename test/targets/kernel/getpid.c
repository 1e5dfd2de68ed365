/* The same work as the original: what a redirect costs is all that differs. */
struct task_struct;
extern int __task_pid_nr_ns(struct task_struct *task, int type, void *ns);

long __x64_sys_getpid(const void *regs)
{
	struct task_struct *current;

	(void)regs;
	asm("mov %%gs:current_task, %0" : "=r"(current));
	return __task_pid_nr_ns(current, 1, 0);
}
