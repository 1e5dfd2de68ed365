import type { SkimTable } from '../../arch/skim-table.js';
import type { CodeRegion } from '../code-space.js';
import { type Alternative, coverOf } from '../kernel-sections.js';
import type { OrcRows } from './orc-rows.js';

/**
 * Gives code that is put in the place of other code at boot the rows of that place. Undefined where it has rows of its own, or shares its bytes.
 */
export function placeAlternatives(
  rows: OrcRows,
  alternatives: readonly Alternative[],
  regions: readonly CodeRegion[],
): OrcRows | undefined {
  if (alternatives.length === 0) return rows;
  const sorted = [...alternatives].sort((a, b) => a.replacement - b.replacement);
  const region = regions.find(({ start, end }) => {
    const first = sorted[0]?.replacement ?? -1;
    return first >= start && first < end;
  });
  if (region === undefined) return undefined;
  let first = 0;
  while (first < rows.count && (rows.positions[first] as number) < region.start) first++;
  let behind = first;
  for (; behind < rows.count && (rows.positions[behind] as number) < region.end; behind++)
    if (rows.patterns[behind] !== 0) return undefined;
  const positions: number[] = [];
  const patterns: number[] = [];
  const add = (position: number, pattern: number) => {
    if (positions[positions.length - 1] === position) patterns[patterns.length - 1] = pattern;
    else {
      positions.push(position);
      patterns.push(pattern);
    }
  };
  add(region.start, 0);
  let last = region.start;
  for (const { original, replacement, replacementBytes } of sorted) {
    if (replacement < last || replacement + replacementBytes > region.end) return undefined;
    last = replacement + replacementBytes;
    let row = rowAt(rows, original);
    add(replacement, rows.patterns[row] as number);
    for (row++; row < rows.count; row++) {
      const offset = (rows.positions[row] as number) - original;
      if (offset >= replacementBytes) break;
      add(replacement + offset, rows.patterns[row] as number);
    }
    add(last, 0);
  }
  if (positions[positions.length - 1] === region.end) {
    positions.pop();
    patterns.pop();
  }
  const count = first + positions.length + rows.count - behind;
  const join = (column: Int32Array, between: readonly number[]) => {
    const joined = new Int32Array(count);
    joined.set(column.subarray(0, first));
    joined.set(between, first);
    joined.set(column.subarray(behind, rows.count), first + between.length);
    return joined;
  };
  return {
    count,
    positions: join(rows.positions, positions),
    patterns: join(rows.patterns, patterns),
  };
}

/** The row that holds at a position. */
function rowAt({ positions, count }: OrcRows, position: number): number {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((positions[middle] as number) <= position) low = middle + 1;
    else high = middle;
  }
  return Math.max(0, low - 1);
}

/**
 * Moves rows that begin inside of an instruction to the next one: they describe code that takes the place of this one. False where nothing does.
 */
export function settleRows(
  rows: OrcRows,
  { starts }: SkimTable,
  alternatives: readonly Alternative[],
): boolean {
  const { positions, patterns } = rows;
  const isStart = (at: number) => (((starts[at >>> 5] as number) >>> (at & 31)) & 1) === 1;
  const isReplaced = coverOf(
    alternatives.flatMap(({ original, originalBytes, replacement, replacementBytes }) => [
      { start: original, end: original + originalBytes },
      { start: replacement, end: replacement + replacementBytes },
    ]),
  );
  let kept = 0;
  let before = -1;
  for (let row = 0; row < rows.count; row++) {
    let position = positions[row] as number;
    if (!isStart(position)) {
      if (patterns[row] !== 0 && !isReplaced(position)) return false;
      const limit = 32 * starts.length;
      while (position < limit && !isStart(position)) position++;
    }
    if (before >= position) kept--;
    before = position;
    positions[kept] = position;
    patterns[kept++] = patterns[row] as number;
  }
  rows.count = kept;
  return true;
}
