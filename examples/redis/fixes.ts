import { readFileSync } from 'node:fs';
import { say } from '../support.js';
import { command } from './resp.js';

/** A security patch of Debian's redis, with the proof that its own test gives. */
export interface Fix {
  /** Its name among the source package's patches, without `.patch`. */
  readonly name: string;
  readonly what: string;
  /** Asks the server what the patch's test asks; whether the answer is the one of the fixed code. */
  isFixed(port: number, patchPath: string): Promise<boolean>;
}

function show(question: string, answer: string): void {
  const text = answer.replaceAll('\r\n', '\\r\\n');
  say(`   ${question} -> ${text.length > 90 ? `${text.slice(0, 90)}…` : text}`);
}

/** "HYLL", encoding 1 (sparse), and the rest of the header. */
const HLL_HEADER = Buffer.concat([Buffer.from('HYLL'), Buffer.from([1]), Buffer.alloc(11)]);
/** XZERO: a run of 16384 registers. */
const HLL_RUN = Buffer.from([0x7f, 0xff]);

export const FIXES: readonly Fix[] = [
  {
    name: '0006-CVE-2025-32023',
    what: 'out-of-bounds write by a HyperLogLog whose run lengths overflow',
    async isFixed(port) {
      // 2^18 + 1 runs wrap around to the right number: taken for valid without the fix, with nothing written.
      const wrapping = Buffer.concat([HLL_HEADER, ...Array.from({ length: 2 ** 18 + 1 }, () => HLL_RUN)]);
      await command(port, 'SET', 'hll', wrapping);
      const answer = await command(port, 'PFCOUNT', 'hll', 'hll');
      show('PFCOUNT of runs that wrap around', answer);
      if (!answer.startsWith('-INVALIDOBJ')) return false;
      // The test of the patch: without the fix, this one writes out of bounds.
      const runs = Array.from({ length: 131072 + 1000 }, () => HLL_RUN);
      await command(port, 'SET', 'hll', Buffer.concat([HLL_HEADER, ...runs, Buffer.from([0xff])]));
      const [count, register] = [
        await command(port, 'PFCOUNT', 'hll', 'hll'),
        await command(port, 'PFDEBUG', 'GETREG', 'hll'),
      ];
      show("PFCOUNT and PFDEBUG GETREG of the patch's test", count + register);
      return count.startsWith('-INVALIDOBJ') && register.startsWith('-INVALIDOBJ');
    },
  },
  {
    name: 'CVE-2026-66373',
    what: 'use after free by a stream whose consumers share a pending entry',
    async isFixed(port, patchPath) {
      const payload = /RESTORE mystream 0 "((?:\\x[0-9a-f]{2})+)"/.exec(readFileSync(patchPath, 'utf8'))?.[1];
      if (payload === undefined) throw new Error(`${patchPath} has no test with a payload any more`);
      const bytes = Buffer.from(payload.replaceAll('\\x', ''), 'hex');
      await command(port, 'DEBUG', 'SET-SKIP-CHECKSUM-VALIDATION', '1');
      // A key of its own each time: a stream that was taken in must not be freed.
      const answer = await command(port, 'RESTORE', `stream-${process.hrtime.bigint()}`, '0', bytes);
      show("RESTORE of the patch's test", answer);
      return answer.includes('Bad data format');
    },
  },
  {
    name: 'CVE-2025-67733',
    what: 'replies that a client can break in two',
    async isFixed(port) {
      const list = await command(port, 'FUNCTION', 'LIST', 'X\r\n+INJECTED');
      show('FUNCTION LIST "X\\r\\n+INJECTED"', list);
      const script = await command(port, 'EVAL', 'error(redis.error_reply("X\\r\\n+INJECTED"))', '0');
      show('EVAL error(…"X\\r\\n+INJECTED")', script);
      return [list, script].every(
        (answer) => answer.indexOf('\r\n') === answer.length - 2 && answer.includes('X  +INJECTED'),
      );
    },
  },
  {
    name: '0002-Fix-Read-Write-key-pattern-selector-CVE-2024-51741-1',
    what: 'denial of service by a malformed ACL selector',
    async isFixed(port) {
      // The user is not used: that is what would end the server.
      const answer = await command(port, 'ACL', 'SETUSER', 'key-permission-RW', '%');
      show('ACL SETUSER key-permission-RW %', answer);
      return answer.includes("Error in ACL SETUSER modifier '%': Syntax error");
    },
  },
];
