struct seq_file;
extern void seq_puts(struct seq_file *m, const char *s);
extern char *saved_command_line;
#ifndef PREFIX
#define PREFIX "patched: "
#endif
#ifdef HUGE
/* More than the kernel has addresses for modules. */
char huge[1016u << 20];
#endif
int cmdline_proc_show(struct seq_file *m, void *v)
{
	seq_puts(m, PREFIX);
	seq_puts(m, saved_command_line);
	seq_puts(m, "\n");
	return 0;
}
