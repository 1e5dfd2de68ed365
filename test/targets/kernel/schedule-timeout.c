/* schedule_timeout() as in kernel/time/sleep_timeout.c of 6.1, with a count of its calls. */
struct task_struct;
struct timer_list {
	void *next;
	void **pprev;
	unsigned long expires;
	void (*function)(struct timer_list *);
	unsigned int flags;
};
struct process_timer {
	struct timer_list timer;
	struct task_struct *task;
};

extern void schedule(void);
extern void init_timer_key(struct timer_list *, void (*)(struct timer_list *), unsigned int, const char *, void *);
extern int mod_timer(struct timer_list *, unsigned long);
extern int timer_delete_sync(struct timer_list *);
extern void process_timeout(struct timer_list *);
extern volatile unsigned long jiffies;

#define MAX_SCHEDULE_TIMEOUT ((long)(~0ul >> 1))

unsigned long patched_calls;

long schedule_timeout(long timeout)
{
	struct process_timer timer;
	unsigned long expire;

	__atomic_fetch_add(&patched_calls, 1, __ATOMIC_RELAXED);
	if (timeout == MAX_SCHEDULE_TIMEOUT) {
		schedule();
		return timeout;
	}
	if (timeout < 0)
		timeout = 0;
	expire = timeout + jiffies;
	asm("mov %%gs:current_task, %0" : "=r"(timer.task));
	init_timer_key(&timer.timer, process_timeout, 0, 0, 0);
	mod_timer(&timer.timer, expire);
	schedule();
	timer_delete_sync(&timer.timer);
	timeout = expire - jiffies;
	return timeout < 0 ? 0 : timeout;
}
