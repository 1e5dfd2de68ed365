/*
 * A change of contract: get_avenrun() returns a mark instead of the load, and /proc/loadavg knows it. The old reader
 * would print the mark as a load of 740171, and the new one says so when it is not given the mark.
 */
struct seq_file;
extern void seq_printf(struct seq_file *m, const char *format, ...);

#define MARK 0x5a5a5a5aul

void get_avenrun(unsigned long *loads, unsigned long offset, int shift)
{
	(void)offset;
	(void)shift;
	loads[0] = loads[1] = loads[2] = MARK * 2048;
}

int loadavg_proc_show(struct seq_file *m, void *v)
{
	unsigned long loads[3];
	void (*volatile callee)(unsigned long *, unsigned long, int) = get_avenrun;

	(void)v;
	callee(loads, 10, 0);
	seq_printf(m, "%s", loads[0] == MARK * 2048 ? "both are new\n" : "MIX\n");
	return 0;
}
