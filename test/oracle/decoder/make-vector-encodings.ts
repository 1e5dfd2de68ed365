/**
 * Prints `src/arch/x86-64/vector-encodings.ts`: which VEX, EVEX and XOP encodings exist, from iced-x86's catalogue of
 * instructions. Run: `npx tsx test/oracle/decoder/make-vector-encodings.ts > src/arch/x86-64/vector-encodings.ts`.
 *
 * The decoder reads only these facts from the catalogue; lengths, flow, targets and stack effects are its own.
 */
import { fileURLToPath } from 'node:url';
import iced from 'iced-x86';

const { Code, CodeExt, EncodingKind, OpCodeOperandKind, OpCodeTableKind, MandatoryPrefix } = iced;

const ENCODINGS = new Map<number, string>([
  [EncodingKind.VEX, 'vex'],
  [EncodingKind.EVEX, 'evex'],
  [EncodingKind.XOP, 'xop'],
]);
const MAPS = new Map<number, number>([
  [OpCodeTableKind.Normal, 0],
  [OpCodeTableKind.T0F, 1],
  [OpCodeTableKind.T0F38, 2],
  [OpCodeTableKind.T0F3A, 3],
  [OpCodeTableKind.MAP5, 5],
  [OpCodeTableKind.MAP6, 6],
  [OpCodeTableKind.MAP8, 8],
  [OpCodeTableKind.MAP9, 9],
  [OpCodeTableKind.MAP10, 10],
]);
const PREFIXES = new Map<number, string>([
  [MandatoryPrefix.None, 'n'],
  [MandatoryPrefix.PNP, 'n'],
  [MandatoryPrefix.P66, '6'],
  [MandatoryPrefix.PF3, '3'],
  [MandatoryPrefix.PF2, '2'],
]);

type Info = ReturnType<typeof CodeExt.opCode>;

function operandKinds(info: Info): string[] {
  return Array.from({ length: info.opCount }, (_, i) => OpCodeOperandKind[info.opKind(i)] ?? '');
}

/** The properties of an encoding that its W and L bits do not choose, as `vector.ts` reads them. */
function properties(info: Info): string {
  const kinds = operandKinds(info);
  const has = (pattern: RegExp) => kinds.some((kind) => pattern.test(kind));
  let text = '';
  if (has(/_or_mem$|^mem|^sibmem/)) text += 'm';
  if (has(/_or_mem$|_rm$/)) text += 'r';
  if (info.isRmGroup) text += 'x';
  if (has(/^[xyzmrt]mm.*_vvvv$/)) text += 'v';
  if (has(/^r(32|64)_vvvv$/)) text += 'V';
  if (has(/^k_vvvv$/)) text += 'w';
  if (has(/^(k|kp1|tmm)_reg$/)) text += 'k';
  if (has(/^r(32|64)_reg$/)) text += 'g';
  if (has(/^tmm_rm$/)) text += 'T';
  if (has(/^mem_vsib/)) text += 's';
  if (has(/^sibmem/)) text += 'S';
  if (info.canBroadcast) text += 'b';
  if (info.canUseRoundingControl) text += 'e';
  else if (info.canSuppressAllExceptions) text += 'a';
  if (info.requireOpMaskRegister) text += 'O';
  else if (info.canUseOpMaskRegister) text += 'o';
  if (info.canUseZeroingMasking) text += /_or_mem$/.test(kinds[0] ?? '') ? 'Z' : 'z';
  if (info.requiresUniqueRegNums) text += 'u';
  if (info.requiresUniqueDestRegNum) text += 'd';
  return text;
}

const HEADER = `/**
 * Which VEX, EVEX and XOP encodings exist. Made by \`test/oracle/decoder/make-vector-encodings.ts\` from the catalogue of
 * instructions in iced-x86 (MIT licence); held against binutils' objdump by \`test/oracle/decoder/objdump.test.ts\`.
 *
 * Keys are the encoding, the opcode map and the mandatory prefix (n none, 6 66h, 3 F3h, 2 F2h). Entries are
 * OPCODE:VARIANT/VARIANT..., in hex; a variant is PROPERTIES,LENGTHS[,GROUPS]: a mask of bit W * 4 + L'L, and a mask of the
 * values of ModRM.reg. The letters of the properties are explained where they are read, in \`vector.ts\`.
 */
export const VECTOR_ENCODINGS: Readonly<Record<string, string>> = {`;
/** Characters of entries in a row, and of a line as the formatter breaks it. */
const ROW_WIDTH = 100;
const LINE_WIDTH = 110;

/** The whole file, formatted as it is checked in. */
export function vectorEncodingsSource(): string {
  // `key` → properties → the (W, L) pairs that have them, as a bit mask: bit W * 4 + L.
  const found = new Map<string, Map<string, { mask: number; groups: number }>>();
  for (const code of Object.values(Code)) {
    if (typeof code !== 'number') continue;
    const info = CodeExt.opCode(code);
    const encoding = ENCODINGS.get(info.encoding);
    // A decoder option selects what only historic processors had.
    if (!info.isInstruction || !info.mode64 || encoding === undefined || info.decoderOption !== 0) continue;
    const key = `${encoding} ${MAPS.get(info.table)} ${PREFIXES.get(info.mandatoryPrefix)}`;
    const lengths = info.isLIG ? (encoding === 'evex' ? [0, 1, 2] : [0, 1]) : [info.L];
    const widths = info.isWIG ? [0, 1] : [info.W];
    let mask = 0;
    for (const w of widths) for (const l of lengths) mask |= 1 << (w * 4 + l);
    const groups = info.isGroup ? 1 << info.groupIndex : 0xff;
    // An opcode with its ModRM byte fixed is stated as two bytes (tilerelease, for one).
    const opcode = info.opCodeLength === 2 ? info.opCode >> 8 : info.opCode;
    const text = properties(info) + (info.opCodeLength === 2 ? `=${(info.opCode & 0xff).toString(16)}` : '');
    const full = `${key} ${opcode.toString(16).padStart(2, '0')}`;
    const variants = found.get(full) ?? new Map<string, { mask: number; groups: number }>();
    const at = `${text}|${groups}`;
    const known = variants.get(at) ?? { mask: 0, groups };
    known.mask |= mask;
    variants.set(at, known);
    found.set(full, variants);
    info.free();
  }

  const lines = new Map<string, string[]>();
  for (const [full, variants] of [...found].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const opcode = full.slice(-2);
    const key = full.slice(0, -3);
    // Group members with the same properties become one entry.
    const merged = new Map<string, number>();
    for (const [at, { mask, groups }] of variants) {
      const text = `${at.split('|')[0]},${mask.toString(16)}`;
      merged.set(text, (merged.get(text) ?? 0) | groups);
    }
    const cells = [...merged].map(([text, groups]) =>
      groups === 0xff ? text : `${text},${groups.toString(16)}`,
    );
    const list = lines.get(key) ?? [];
    list.push(`${opcode}:${cells.sort().join('/')}`);
    lines.set(key, list);
  }
  const out = [HEADER];
  for (const [key, cells] of lines) {
    let line = '';
    const rows: string[] = [];
    for (const cell of cells) {
      if (line.length + cell.length + 1 > ROW_WIDTH) {
        rows.push(line);
        line = '';
      }
      line += `${cell} `;
    }
    rows.push(line.trimEnd());
    const single = `  '${key}': '${rows[0]}',`;
    if (rows.length === 1 && single.length <= LINE_WIDTH) out.push(single);
    else out.push(`  '${key}':`, `${rows.map((row) => `    '${row}'`).join(' +\n')},`);
  }
  out.push('};', '');
  return out.join('\n');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.stdout.write(vectorEncodingsSource());
