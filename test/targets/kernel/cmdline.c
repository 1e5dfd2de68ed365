struct seq_file;
extern void seq_printf(struct seq_file *m, const char *format, ...);
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
	seq_printf(m, "%s", PREFIX);
	seq_printf(m, "%s", saved_command_line);
	seq_printf(m, "\n");
	return 0;
}
