import type { Architecture } from '../arch/architecture.js';
import { ParseError } from '../base/errors.js';
import { PairMap } from '../base/pair-map.js';
import { FrameStates } from '../dwarf/frame-program.js';
import { type Cie, FrameSection } from '../dwarf/frame-section.js';
import { SHT_RELA } from '../elf/constants.js';
import type { ElfFile, ElfSection } from '../elf/elf-file.js';
import { orcFormatOf } from '../orc/format.js';
import { parseOrc } from '../orc/table.js';
import { ClaimBuilder, type ClaimTable, type ClaimUnit } from './claims.js';
import type { CodeRegion, CodeSpace } from './code-space.js';
import { wordsOf } from './program.js';
import { relocatedSection } from './relocated-section.js';

/** Beyond every position: where sections that are not code are imagined to lie in a relocatable object. */
const ELSEWHERE = 0x4000_0000;

/** A table that was read, and the malformed parts of it that claim nothing. */
export interface ReadClaims {
  readonly claims: ClaimTable;
  readonly problems: readonly { readonly text: string; readonly position: number | undefined }[];
}

/**
 * The claims of `.eh_frame` or `.debug_frame`; undefined where the file has no such section. A malformed entry is a
 * problem of its own: the others still count.
 */
export function readDwarfClaims(
  elf: ElfFile,
  space: CodeSpace,
  architecture: Architecture,
  kind: 'eh_frame' | 'debug_frame',
): ReadClaims | undefined {
  const section = elf.findSection(`.${kind}`);
  if (section === undefined || section.data.length === 0) return undefined;
  const builder = new ClaimBuilder(architecture.calleeSaved, architecture.returnAddress);
  const problems: { text: string; position: number | undefined }[] = [];
  const units: ClaimUnit[] = [];
  const states = new FrameStates(elf.source);
  // Claims by state.
  const callIds: number[] = [];
  const signalIds: number[] = [];
  const silentIds: number[] = [];
  const hasGo = GO_SECTIONS.some((name) => elf.findSection(name) !== undefined);
  const frames = new FrameSection({
    bytes: space.isRelocatable
      ? relocatedSection(elf, section, architecture, ELSEWHERE, (symbol) => space.positionOfSymbol(symbol))
      : section.data,
    address: space.isRelocatable ? ELSEWHERE : section.address,
    kind,
    source: elf.source,
  });
  try {
    for (const fde of frames.entries()) {
      const start = space.isRelocatable ? fde.start : space.positionOf(fde.start);
      // The linker leaves entries of discarded sections behind, at address 0.
      if (start === undefined || start >= ELSEWHERE || start <= 0) {
        if (fde.start !== 0 && fde.end > fde.start) {
          problems.push({
            text: `the entry at ${fde.offset} describes no code of this file`,
            position: undefined,
          });
        }
        continue;
      }
      const delta = start - fde.start;
      units.push({ start, end: fde.end + delta });
      try {
        const isSilent = hasGo && isGoCie(fde.cie);
        const ids = fde.cie.signalFrame ? signalIds : isSilent ? silentIds : callIds;
        states.run(fde, (from, to, state) => {
          let id = ids[state];
          if (id === undefined) {
            id = builder.intern(states.ruleOf(state, fde.cie), isSilent);
            ids[state] = id;
          }
          builder.addRow(from + delta, to + delta, id);
        });
      } catch (error) {
        if (!(error instanceof ParseError)) throw error;
        problems.push({ text: error.message, position: start });
      }
    }
  } catch (error) {
    if (!(error instanceof ParseError)) throw error;
    problems.push({ text: error.message, position: undefined });
  }
  return { claims: builder.build('dwarf', units), problems };
}

/** What Go's linker writes into every program. */
const GO_SECTIONS = ['.gopclntab', '.go.buildinfo', '.note.go.buildid'];
const GO_DATA_ALIGNMENT = -4;

/**
 * Go's entries say where the CFA and the return address are and no more: its functions keep no register for their callers (ABIInternal), nor
 * does its assembly. A program's C parts have entries of their own, whose offsets count in words of eight bytes.
 */
function isGoCie({ augmentation, dataAlignment }: Cie): boolean {
  return augmentation === '' && dataAlignment === GO_DATA_ALIGNMENT;
}

/**
 * The claims of `.orc_unwind`; undefined where the file has none. Throws a ParseError for a malformed table, and for half of one:
 * the entries, or the addresses that they are for.
 */
export function readOrcClaims(
  elf: ElfFile,
  space: CodeSpace,
  architecture: Architecture,
  kernelRelease?: string,
): ReadClaims | undefined {
  const entries = findFilled(elf, '.orc_unwind');
  const ips = findFilled(elf, '.orc_unwind_ip');
  if (entries === undefined && ips === undefined) return undefined;
  if (ips === undefined) throw halfOrc(elf, '.orc_unwind', '.orc_unwind_ip');
  if (entries === undefined) throw halfOrc(elf, '.orc_unwind_ip', '.orc_unwind');
  const format = orcFormatOf(
    {
      header: elf.findSection('.orc_header')?.data,
      kernelRelease: kernelRelease ?? moduleRelease(elf),
    },
    elf.source,
  );
  const orc = parseOrc({
    entries: entries.data,
    format,
    ips: space.isRelocatable
      ? { addresses: relocatedIps(elf, ips, space) }
      : { bytes: ips.data, address: ips.address },
    source: elf.source,
  });
  const builder = new ClaimBuilder([architecture.framePointer], architecture.returnAddress);
  const idOfEntry = new PairMap();
  let region: CodeRegion | undefined;
  const problems: { text: string; position: number | undefined }[] = [];
  for (let i = 0; i < orc.size; i++) {
    const address = orc.addresses[i] as number;
    const start = space.isRelocatable ? address : space.positionOf(address);
    if (start === undefined || start < 0) continue;
    const [offsets, fields] = [orc.offsetsAt(i), orc.fieldsAt(i)];
    let id = idOfEntry.get(offsets, fields);
    if (id < 0) {
      const rule = orc.ruleAt(i);
      id = rule === undefined ? 0 : builder.intern(rule);
      idOfEntry.set(offsets, fields, id);
    }
    // A section's last entry ends where the section does.
    if (region === undefined || start < region.start || start >= region.end) region = space.regionAt(start);
    const next = orc.endOf(i);
    const end = space.isRelocatable ? next : Number.isFinite(next) ? start + next - address : next;
    builder.addRow(start, Math.min(end, region?.end ?? start), id);
  }
  return { claims: builder.build('orc', []), problems };
}

/** A section that holds something: separate debug files keep the headers of what the file itself has. */
function findFilled(elf: ElfFile, name: string): ElfSection | undefined {
  const section = elf.findSection(name);
  return section === undefined || section.data.length === 0 ? undefined : section;
}

function halfOrc(elf: ElfFile, present: string, absent: string): ParseError {
  const at = elf.findSection(present)?.offset ?? 0;
  return new ParseError(elf.source, at, `${present} is there without ${absent}, and says nothing alone`, {
    remedy: 'rebuild the file, or copy both sections: the kernel reads neither without the other',
  });
}

/** A relocatable module's `.orc_unwind_ip` says where its entries belong through relocations alone. */
function relocatedIps(elf: ElfFile, ips: ElfSection, space: CodeSpace): Float64Array {
  const addresses = new Float64Array(ips.data.length >>> 2).fill(-1);
  const { symbols } = elf;
  const places: (number | undefined)[] = [];
  for (const section of elf.sections) {
    if (section.type !== SHT_RELA || section.info !== ips.index) continue;
    const words = wordsOf(section.data);
    const count = Math.floor(section.data.length / 24);
    for (let n = 0, word = 0; n < count; n++, word += 6) {
      const symbolIndex = words[word + 3] as number;
      let place = places[symbolIndex];
      if (place === undefined) {
        const symbol = symbols[symbolIndex];
        place = (symbol && space.positionOfSymbol(symbol)) ?? -1;
        places[symbolIndex] = place;
      }
      const index = (words[word] as number) >>> 2;
      if (place >= 0 && index < addresses.length) addresses[index] = place + (words[word + 4] as number);
    }
  }
  return addresses;
}

/** `vermagic=6.1.0-50-cloud-amd64 SMP …` of `.modinfo`. */
export function moduleRelease(elf: ElfFile): string | undefined {
  const data = elf.findSection('.modinfo')?.data;
  if (data === undefined) return undefined;
  const text = new TextDecoder('latin1').decode(data);
  return /(?:^|\0)vermagic=([^\0 ]+)/.exec(text)?.[1];
}
