/* SPDX-License-Identifier: GPL-3.0-or-later
 * Preloaded, it puts a program's time of day ahead by CLOCK_AHEAD seconds, and leaves all other clocks alone:
 * namespaces give no host a time of day of its own.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
	const char *ahead = getenv("CLOCK_AHEAD");
	int failed = (int)syscall(SYS_clock_gettime, clock, now);

	if (!failed && clock == CLOCK_REALTIME && ahead)
		now->tv_sec += atol(ahead);
	return failed;
}
