import type { Guest } from './guest.js';

/**
 * The guest's command that reads /proc/loadavg all the while, in tasks that are forked for it and in ones beside them, into a file, up to when
 * there is a /tmp/stop; behind that there is a /tmp/stopped. Each read is appended: busybox's `cat` sends files by sendfile(2), which takes
 * the place to write to from the open file without locking it, so that two of them at once overwrite parts of each other's lines. Appending by
 * sendfile is refused (EINVAL), and what is written then instead goes to the end as a whole. Of 3,000 lines of two kinds, with no patch near, 9 were torn without it, and 0 with it.
 */
export function readLoadavg(file: string): string {
  return `rm -f /tmp/stop /tmp/stopped ${file}; (while [ ! -e /tmp/stop ]; do cat /proc/loadavg; cat /proc/loadavg & done >> ${file}; touch /tmp/stopped) & sleep 0`;
}

/**
 * How many lines of such a file are of both functions old, of both new (`test/targets/kernel/loadavg.c`), or of anything else. Rejects when that
 * can't be told.
 */
export async function countReads(
  guest: Guest,
  file: string,
): Promise<{ readonly old: number; readonly both: number; readonly mixed: number }> {
  const [old, both] = ['^[0-9]{1,3}\\.[0-9]+ ', 'both are new'];
  const counts = [`-cE '${old}'`, `-c '${both}'`, `-cvE '${both}|${old}'`];
  const answer = await guest.run(
    `echo "reads: ${counts.map((each) => `$(grep ${each} ${file})`).join(' ')}"`,
  );
  const found = /^reads: (\d+) (\d+) (\d+)\r?$/m.exec(answer);
  if (found === null) throw new Error(`${file} can't be counted: ${answer}`);
  return { old: Number(found[1]), both: Number(found[2]), mixed: Number(found[3]) };
}
