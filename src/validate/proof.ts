import { ByteReader } from '../base/byte-reader.js';
import { ByteWriter } from '../base/byte-writer.js';
import { crc32 } from '../base/crc32.js';
import { Status } from './claim-verdicts.js';
import type { ValidateResult } from './validate-file.js';

/** What is known of the rows at an address. `disproved` by any source that was looked at counts. */
export type RowVerdict = 'proven' | 'disproved' | 'unknown';

const MAGIC = 'LGPROOF\0';
/** Raised with every change of the format or of what a verdict means: an older proof is made anew. */
export const PROOF_VERSION = 3;
const VERDICTS: readonly RowVerdict[] = ['unknown', 'proven', 'disproved'];
/** A damaged file must not ask for more. */
const MAX_RANGES = 1 << 24;

/** Where the code of section `i` of a relocatable object is imagined to lie in its proof. */
const SECTION_SPAN = 2 ** 32;

/**
 * The verdicts of one file, to be kept by its build-id; undefined for a file without one, since nothing that runs could be
 * traced back to it. Format: magic, version (u32), CRC-32 of the rest (u32); then build-id and source (NUL-terminated each), the
 * number of sections and their names (NUL-terminated; none for a linked file), the number of ranges, and per range the distance
 * from the end of the last one, the length and the verdict (ULEB128 each; the first distance counts from the first address, 8
 * bytes). In a relocatable object, addresses count within a section, plus 2^32 for each section before it.
 */
export function encodeProof(result: ValidateResult, source: 'dwarf' | 'orc'): Uint8Array | undefined {
  const proven = result.sources.find((s) => s.source === source);
  if (proven === undefined || result.buildId === undefined) return undefined;
  const { isRelocatable, regions } = result;
  const ranges: { start: number; end: number; verdict: number }[] = [];
  let region = 0;
  for (const stretch of proven.stretches()) {
    const verdict = verdictOf(stretch.status);
    if (verdict === 0) continue;
    while (stretch.start >= (regions[region]?.end ?? Number.POSITIVE_INFINITY)) region++;
    const home = regions[region];
    if (home === undefined) break;
    const start = stretch.start - home.start + (isRelocatable ? region * SECTION_SPAN : home.address);
    const end = start + stretch.end - stretch.start;
    const last = ranges[ranges.length - 1];
    if (last !== undefined && last.end === start && last.verdict === verdict) last.end = end;
    else if (last === undefined || start >= last.end) ranges.push({ start, end, verdict });
  }
  const body = new ByteWriter(ranges.length * 4 + 64);
  body.writeCString(result.buildId).writeCString(source);
  const sections = isRelocatable ? regions : [];
  body.writeUleb128(sections.length);
  for (const { name } of sections) body.writeCString(name);
  body.writeUleb128(ranges.length);
  let at = ranges[0]?.start ?? 0;
  body.writeU64(at);
  for (const { start, end, verdict } of ranges) {
    body
      .writeUleb128(start - at)
      .writeUleb128(end - start)
      .writeUleb128(verdict);
    at = end;
  }
  const bytes = body.toBytes();
  return new ByteWriter(bytes.length + 16)
    .writeBytes(new TextEncoder().encode(MAGIC))
    .writeU32(PROOF_VERSION)
    .writeU32(crc32(bytes))
    .writeBytes(bytes)
    .toBytes();
}

function verdictOf(status: number): number {
  if (status === Status.disproved) return 2;
  return status === Status.proven ? 1 : 0;
}

/** Kept verdicts, by link address, or by section and offset. */
export class Proof {
  readonly buildId: string;
  readonly #sections: readonly string[];
  readonly #starts: Float64Array;
  readonly #ends: Float64Array;
  readonly #verdicts: Uint8Array;

  constructor(
    buildId: string,
    sections: readonly string[],
    starts: Float64Array,
    ends: Float64Array,
    verdicts: Uint8Array,
  ) {
    this.buildId = buildId;
    this.#sections = sections;
    this.#starts = starts;
    this.#ends = ends;
    this.#verdicts = verdicts;
  }

  /** Of a relocatable object: `offset` counts from the first byte of the section. Unknown where two have that name. */
  verdictInSection(name: string, offset: number): RowVerdict {
    const index = this.#sections.indexOf(name);
    if (index < 0 || index !== this.#sections.lastIndexOf(name) || offset < 0) return 'unknown';
    return this.verdictAt(index * SECTION_SPAN + offset);
  }

  verdictAt(address: number): RowVerdict {
    let low = 0;
    let high = this.#starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#starts[middle] as number) <= address) low = middle + 1;
      else high = middle;
    }
    if (low === 0 || address >= (this.#ends[low - 1] as number)) return 'unknown';
    return VERDICTS[this.#verdicts[low - 1] as number] ?? 'unknown';
  }
}

/** Undefined for a proof of another version; throws a ParseError for a damaged one. */
export function parseProof(bytes: Uint8Array, source: string): Proof | undefined {
  const reader = new ByteReader(bytes, source);
  const magic = new TextDecoder('latin1').decode(reader.readBytes(8));
  if (magic !== MAGIC) reader.fail('this is no proof of livegraft');
  if (reader.readU32() !== PROOF_VERSION) return undefined;
  if (reader.readU32() !== crc32(bytes.subarray(16))) reader.fail('its checksum is wrong');
  const buildId = reader.readCString();
  reader.readCString();
  const sectionCount = reader.readUleb128();
  if (sectionCount > reader.remaining) reader.fail(`absurd count of sections ${sectionCount}`);
  const sections = Array.from({ length: sectionCount }, () => reader.readCString());
  const count = reader.readUleb128();
  if (count > MAX_RANGES || count * 3 > reader.remaining) reader.fail(`absurd count of ranges ${count}`);
  const starts = new Float64Array(count);
  const ends = new Float64Array(count);
  const verdicts = new Uint8Array(count);
  let at = reader.readAddress();
  for (let i = 0; i < count; i++) {
    at += reader.readUleb128();
    starts[i] = at;
    at += reader.readUleb128();
    ends[i] = at;
    verdicts[i] = Math.min(reader.readUleb128(), 255);
  }
  return new Proof(buildId, sections, starts, ends, verdicts);
}
