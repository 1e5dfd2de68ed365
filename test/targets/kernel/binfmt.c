/* /proc/sys/fs/binfmt_misc/status says that it is patched. `enabled` is the module's own, though the kernel has others. */
struct file;
#ifdef ANY_VERSION
/* Newer ones keep it elsewhere. */
#define enabled 1
#else
extern int enabled;
#endif
extern long simple_read_from_buffer(void *to, unsigned long count, long long *ppos, const void *from,
				    unsigned long available);

static const char on[] = "patched: enabled\n";
static const char off[] = "patched: disabled\n";

long bm_status_read(struct file *file, char *buf, unsigned long nbytes, long long *ppos)
{
	(void)file;
	return simple_read_from_buffer(buf, nbytes, ppos, enabled ? on : off, enabled ? sizeof(on) - 1 : sizeof(off) - 1);
}

#ifdef AND_KERNEL
/* The function of a kernel thread, which never leaves it: the transition does not end. */
int oom_reaper(void *unused)
{
	(void)unused;
	return 0;
}
#endif

/* With -DCALLBACKS: they print what binfmt_misc's `enabled` is, and the pre-patch one returns VETO; with -DSLOW=n it sleeps for n ms. */
#ifdef CALLBACKS
#define __KERNEL__
#define LIVEGRAFT_GFP 0
#include <livegraft.h>
extern int _printk(const char *format, ...);
extern void msleep(unsigned int ms);
#ifndef VETO
#define VETO 0
#endif

static int check(void)
{
	_printk("callback module pre_patch, enabled %d\n", enabled);
#ifdef SLOW
	msleep(SLOW);
#endif
	return VETO;
}
LIVEGRAFT_PRE_PATCH(check);

static void begin(void)
{
	_printk("callback module post_patch, enabled %d\n", enabled);
}
LIVEGRAFT_POST_PATCH(begin);

static void restore(void)
{
	_printk("callback module pre_unpatch, enabled %d\n", enabled);
}
LIVEGRAFT_PRE_UNPATCH(restore);

static void end(void)
{
	_printk("callback module post_unpatch, enabled %d\n", enabled);
}
LIVEGRAFT_POST_UNPATCH(end);
#endif
