/*
 * What is read of /proc/cmdline begins with PREFIX. With -DCALLBACKS="name": callbacks that print "callback name KIND" to the kernel's
 * log; with -DVETO=n the pre-patch one returns n, with -DSLOW=n it sleeps for n ms, with -DCRASH the post-patch one reads address 8.
 * -DSTATE=version: they set panic_timeout to 70 and back, and hand what it was from patch to patch. -DSHADOW: reads are counted, in
 * a variable that outlives the patch unless it is the -DLAST one. -DBUSY: a function changes, too, that a thread never leaves.
 */
#define __KERNEL__
/* GFP_NOWAIT without waking anybody. */
#define LIVEGRAFT_GFP 0
#include <livegraft.h>

struct seq_file;
extern void seq_puts(struct seq_file *m, const char *s);
extern void seq_printf(struct seq_file *m, const char *format, ...);
extern int _printk(const char *format, ...);
extern void msleep(unsigned int ms);
extern char *saved_command_line;
extern int panic_timeout;

int cmdline_proc_show(struct seq_file *m, void *v)
{
	seq_puts(m, PREFIX);
#ifdef SHADOW
	int *reads = livegraft_shadow_get_or_alloc(saved_command_line, 1, sizeof(int), 0, 0);
	if (reads)
		seq_printf(m, "%d ", ++*reads);
#endif
	seq_puts(m, saved_command_line);
	seq_puts(m, "\n");
	return 0;
}

#ifdef BUSY
/* A kernel thread is in it for good. */
int oom_reaper(void *unused)
{
	return 0;
}
#endif

#ifdef CALLBACKS
#ifdef STATE
LIVEGRAFT_STATE(timeout, 7, STATE);
#endif

static int check(void)
{
	_printk("callback " CALLBACKS " pre_patch\n");
#ifdef SLOW
	msleep(SLOW);
#endif
#ifdef STATE
	timeout.data = timeout.previous ? timeout.previous->data : (void *)(long)panic_timeout;
#endif
#ifdef VETO
	return VETO;
#endif
	return 0;
}
LIVEGRAFT_PRE_PATCH(check);

static void begin(void)
{
	_printk("callback " CALLBACKS " post_patch\n");
#ifdef CRASH
	*(volatile int *)8;
#endif
#ifdef STATE
	panic_timeout = 70;
#endif
}
LIVEGRAFT_POST_PATCH(begin);

static void restore(void)
{
	_printk("callback " CALLBACKS " pre_unpatch\n");
#ifdef STATE
	panic_timeout = (int)(long)timeout.data;
#endif
}
LIVEGRAFT_PRE_UNPATCH(restore);

static void end(void)
{
	_printk("callback " CALLBACKS " post_unpatch\n");
#ifdef LAST
	livegraft_shadow_free_all(1, 0);
#endif
}
LIVEGRAFT_POST_UNPATCH(end);
#endif
