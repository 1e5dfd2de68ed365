import { spawnSync } from 'node:child_process';
import type { CfiRow, RegisterRule } from '../../../src/cfi/row.js';
import { frameRows } from '../../../src/dwarf/frame-program.js';
import type { FrameSection } from '../../../src/dwarf/frame-section.js';

/** One line of text a row, the same from readelf and from us: what the tests compare. */

const REGISTERS = 'rax rdx rcx rbx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 ra'.split(' ');
const VECTORS = Array.from({ length: 16 }, (_, i) => `xmm${i}`);
const REGISTER_NAMES = [...REGISTERS, ...VECTORS];

/**
 * What `readelf --debug-dump=frames-interp` says of one section: `OFFSET START..END` a frame entry, `  LOC CFA
 * REGISTER=RULE…` a row. A column that says "u" means unspecified or undefined; those are left out on both sides.
 */
export function readelfRows(path: string, section: '.eh_frame' | '.debug_frame'): string[] {
  const { status, stdout, stderr } = spawnSync(
    'readelf',
    ['--debug-dump=frames-interp,no-follow-links', path],
    {
      encoding: 'utf8',
      maxBuffer: 2 ** 30,
    },
  );
  if (status !== 0) throw new Error(`readelf: ${stderr}`);
  const out: string[] = [];
  let isWanted = false;
  let columns: string[] = [];
  let commonRow = '';
  const commonRows = new Map<string, string>();
  let entry:
    | { start: number; end: number; rows: Map<number, string>; cie: string }
    | { cieId: string }
    | undefined;
  const flush = () => {
    if (entry === undefined) return;
    if ('cieId' in entry) commonRows.set(entry.cieId, commonRow);
    else {
      // Without any instruction of its own an entry has the row of its CIE, which readelf does not repeat.
      if (entry.rows.size === 0) entry.rows.set(entry.start, commonRows.get(entry.cie) ?? '');
      for (const [at, row] of entry.rows) {
        if (at < entry.end) out.push(`  ${at.toString(16)} ${row}`);
      }
    }
    entry = undefined;
  };
  for (const line of stdout.split('\n')) {
    const header = /^Contents of the (\S+) section/.exec(line);
    if (header !== null) {
      flush();
      isWanted = header[1] === section;
      continue;
    }
    if (!isWanted) continue;
    const frame =
      /^([0-9a-f]+) [0-9a-f]+ [0-9a-f]+ (CIE|FDE)(?: cie=([0-9a-f]+) pc=([0-9a-f]+)\.\.([0-9a-f]+))?/.exec(
        line,
      );
    if (frame !== null) {
      flush();
      const [, offset = '', kind, cie = '', from = '', to = ''] = frame;
      commonRow = '';
      if (kind === 'CIE') entry = { cieId: offset };
      else {
        const [start, end] = [
          Number(BigInt.asIntN(64, BigInt(`0x${from}`))),
          Number(BigInt.asIntN(64, BigInt(`0x${to}`))),
        ];
        entry = { start, end, rows: new Map(), cie };
        out.push(`${Number.parseInt(offset, 16)} ${start.toString(16)}..${end.toString(16)}`);
      }
      continue;
    }
    // A value that is in another register is printed as "r8 (r8)".
    const words = line
      .replaceAll(/\br\d+ \((\w+)\)/g, '$1')
      .trim()
      .split(/\s+/);
    if (words[0] === 'LOC') {
      columns = words.slice(2);
      continue;
    }
    if (entry === undefined || !/^[0-9a-f]{16} /.test(line)) continue;
    const [at = '', cfa = '', ...rules] = words;
    const text = rules.flatMap((rule, i) => (rule === 'u' ? [] : [`${columns[i]}=${rule}`]));
    const row = [cfa, ...text.sort()].join(' ');
    if ('cieId' in entry) commonRow = row;
    // A later row of the same place replaces the one before.
    else entry.rows.set(Number(BigInt.asIntN(64, BigInt(`0x${at}`))), row);
  }
  flush();
  return out;
}

/** The same text from our reader. */
export function ownRows(section: FrameSection): string[] {
  const out: string[] = [];
  for (const fde of section.entries()) {
    out.push(`${fde.offset} ${fde.start.toString(16)}..${fde.end.toString(16)}`);
    let next = fde.start;
    for (const row of frameRows(fde, 'test')) {
      if (row.start !== next) throw new Error(`a gap before ${row.start.toString(16)}`);
      next = row.end;
      out.push(`  ${row.start.toString(16)} ${rowText(row)}`);
    }
    if (next !== fde.end) throw new Error(`rows end at ${next.toString(16)}, not ${fde.end.toString(16)}`);
  }
  return out;
}

function rowText(row: CfiRow): string {
  const cfa =
    row.cfa.kind === 'register' ? `${REGISTER_NAMES[row.cfa.register]}${signed(row.cfa.offset)}` : 'exp';
  const rules = [...row.registers].flatMap(([register, rule]) => {
    const text = ruleText(rule);
    const name = register === row.returnAddressRegister ? 'ra' : REGISTER_NAMES[register];
    return text === undefined ? [] : [`${name}=${text}`];
  });
  return [cfa, ...rules.sort()].join(' ');
}

function ruleText(rule: RegisterRule): string | undefined {
  switch (rule.kind) {
    case 'undefined':
      return undefined;
    case 'same':
      return 's';
    case 'offset':
      return `c${signed(rule.offset)}`;
    case 'valOffset':
      return `v${signed(rule.offset)}`;
    case 'register':
      return REGISTER_NAMES[rule.register];
    case 'expression':
      return 'exp';
    case 'valExpression':
      return 'vexp';
  }
}

function signed(value: number): string {
  return value < 0 ? String(value) : `+${value}`;
}
