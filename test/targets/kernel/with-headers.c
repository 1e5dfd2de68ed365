/* Compiled against a kernel's headers package: what it knows of tasks and inlines comes from there. */
#include <linux/cred.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/uidgid.h>

int cmdline_proc_show(struct seq_file *m, void *v)
{
	seq_printf(m, "%s is task %d of user %d: ", current->comm, current->pid,
		   from_kuid(&init_user_ns, current_uid()));
	seq_puts(m, saved_command_line);
	seq_putc(m, '\n');
	return 0;
}
