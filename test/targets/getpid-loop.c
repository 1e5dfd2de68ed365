/* Prints how many nanoseconds a getpid() takes, as the fastest of some rounds. Needs no library: it runs in a guest. */
static long call(long number, long a, long b, long c)
{
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

static long now(void)
{
	long time[2];
	call(228, 1, (long)time, 0);
	return time[0] * 1000000000l + time[1];
}

enum { CALLS = 100000, ROUNDS = 9 };

void _start(void)
{
	char text[24];
	int at = sizeof text;
	long best = 1l << 62;

	for (int round = 0; round < ROUNDS; round++) {
		long start = now();
		for (int i = 0; i < CALLS; i++)
			call(39, 0, 0, 0);
		long took = now() - start;
		if (took < best)
			best = took;
	}
	text[--at] = '\n';
	for (best /= CALLS; best > 0; best /= 10)
		text[--at] = '0' + best % 10;
	call(1, 1, (long)(text + at), sizeof text - at);
	call(60, 0, 0, 0);
}
