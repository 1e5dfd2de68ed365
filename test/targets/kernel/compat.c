/*
 * A program of 32 bits without a library (gcc -m32 -nostdlib -static). Its tasks enter the kernel in one way, the first argument: `int80`, or `vdso`,
 * which is what the kernel takes for the fastest on this processor (SYSENTER or SYSCALL). One sleeps for good, one sleeps again and again, one
 * computes, and the first forks readers of /proc/loadavg as long as there is no file /tmp/compat-stop.
 */
typedef unsigned int word;

enum { EXIT = 1, FORK = 2, READ = 3, WRITE = 4, OPEN = 5, WAITPID = 7, PAUSE = 29, ACCESS = 33, KILL = 37, NANOSLEEP = 162, PRCTL = 172 };
enum { CREATE_TO_APPEND = 02101, PR_SET_NAME = 15, PR_SET_PDEATHSIG = 1, SIGKILL = 9, AT_SYSINFO = 32 };

/* The kernel's entry in the vDSO; none: by interrupt. */
static word sysinfo;

static int call(word number, word a, word b, word c)
{
	int result;

	if (sysinfo)
		asm volatile("call *%1" : "=a"(result) : "m"(sysinfo), "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
	else
		asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
	return result;
}

static void pause_for(word nanoseconds)
{
	word time[2] = {0, nanoseconds};

	call(NANOSLEEP, (word)time, 0, 0);
}

static void become(const char *name)
{
	call(PRCTL, PR_SET_NAME, (word)name, 0);
	call(PRCTL, PR_SET_PDEATHSIG, SIGKILL, 0);
}

static void copy_load(void)
{
	char text[128];
	int from = call(OPEN, (word)"/proc/loadavg", 0, 0);
	int length = call(READ, from, (word)text, sizeof text);
	int to = call(OPEN, (word)"/tmp/compat-seen", CREATE_TO_APPEND, 0644);

	call(WRITE, to, (word)text, length);
	call(EXIT, 0, 0, 0);
}

static void run(word *stack)
{
	word argc = stack[0], *end = stack + argc + 2;
	const char *way = (const char *)stack[2];

	if (way[0] == 'v') {
		while (*end++)
			;
		for (; end[0]; end += 2)
			if (end[0] == AT_SYSINFO)
				sysinfo = end[1];
		if (!sysinfo)
			call(EXIT, 1, 0, 0);
	}
	if (call(FORK, 0, 0, 0) == 0) {
		become("compat-sleeps");
		for (;;)
			call(PAUSE, 0, 0, 0);
	}
	if (call(FORK, 0, 0, 0) == 0) {
		become("compat-naps");
		for (;;)
			pause_for(20000000);
	}
	if (call(FORK, 0, 0, 0) == 0) {
		become("compat-computes");
		for (;;)
			asm volatile("pause");
	}
	while (call(ACCESS, (word)"/tmp/compat-stop", 0, 0) != 0) {
		int child = call(FORK, 0, 0, 0);

		if (child == 0)
			copy_load();
		call(WAITPID, child, 0, 0);
	}
	call(EXIT, 0, 0, 0);
}

asm(".globl _start\n_start:\n\tmov %esp, %eax\n\tpush %eax\n\tcall start_in_c");

__attribute__((used)) void start_in_c(word *stack)
{
	run(stack);
}
