import { hex, linkAddress } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import { NT_GNU_BUILD_ID } from '../../elf/constants.js';
import { parseNotes } from '../../elf/notes.js';
import type { KernelImage } from '../../kernel-image/kernel-image.js';
import type { GdbClient } from './gdb-client.js';
import { tryRead } from './gdb-memory.js';
import type { GuestSlices } from './guest-slices.js';
import { explainHiddenKernel, offsetByGates, sightOf } from './hidden-kernel.js';

/** Kernels are placed at multiples of CONFIG_PHYSICAL_ALIGN in this range (arch/x86/include/asm/page_64_types.h). */
const KASLR_STEP = 0x20_0000;
const KERNEL_IMAGE_BYTES = 0x4000_0000;
const START_KERNEL_MAP = -0x8000_0000;
/** How often to let a guest run on that was in user mode, where page-table isolation hides the kernel. */
const MAX_TRIES = 50;

/**
 * Finds where the running kernel lies and holds it against the image: its banner, and its build-id where it has one.
 * Returns what KASLR added to the link addresses. Rejects with `kernel-mismatch` when it is another kernel.
 */
export async function locateKernel(
  client: GdbClient,
  slices: GuestSlices,
  image: KernelImage,
): Promise<number> {
  const banner = image.symbols.findUnique('linux_banner');
  const text = image.symbols.findUnique('_text');
  if (banner === undefined || text === undefined)
    throw new LivegraftError('kernel-image-incomplete', `${image.source} has no linux_banner or _text`);
  const expected = new TextEncoder().encode(image.banner);
  const isThere = async (offset: number): Promise<boolean | undefined> => {
    const bytes = await tryRead(client, banner.address + offset, expected.length);
    if (bytes === undefined || !expected.every((byte, i) => bytes[i] === byte)) return bytes && false;
    await expectBuildId(client, image, offset);
    return true;
  };
  for (let attempt = 0; attempt < MAX_TRIES; attempt++) {
    let isMapped = false;
    for (const offset of candidates(text.address)) {
      slices.breathe();
      await slices.stop();
      const found = await isThere(offset);
      if (found === true) return offset;
      isMapped ||= found === false;
    }
    if (isMapped) break;
    const hidden = await offsetByGates(client, image);
    if (hidden !== undefined) {
      slices.sight = sightOf(new KernelAddresses(image, hidden), banner.address + hidden);
      slices.resume();
      try {
        await slices.stop();
      } catch (error) {
        throw await explainHiddenKernel(client, banner.address + hidden, error);
      }
      if ((await isThere(hidden)) === true) return hidden;
    }
    slices.resume();
  }
  throw new LivegraftError(
    'kernel-mismatch',
    `the guest does not run the kernel of ${image.source} (${image.release})`,
    {
      remedy: 'give the vmlinuz or vmlinux of the running kernel; `uname -rv` in the guest names it',
    },
  );
}

function* candidates(text: number): Generator<number> {
  yield 0;
  for (let at = START_KERNEL_MAP; at < START_KERNEL_MAP + KERNEL_IMAGE_BYTES; at += KASLR_STEP)
    if (at !== text) yield at - text;
}

async function expectBuildId(client: GdbClient, image: KernelImage, offset: number): Promise<void> {
  const notes = image.elf.findSection('.notes');
  if (notes === undefined || image.buildId === undefined) return;
  const bytes = await client.readMemory(notes.address + offset, notes.sizeBytes);
  const found = parseNotes(bytes, notes.alignment, 'the guest').find(
    (note) => note.name === 'GNU' && note.type === NT_GNU_BUILD_ID,
  );
  const buildId = Array.from(found?.description ?? [], (byte) => byte.toString(16).padStart(2, '0')).join('');
  if (buildId === image.buildId) return;
  throw new LivegraftError(
    'kernel-mismatch',
    `the guest's kernel has build-id ${buildId}, ${image.source} has ${image.buildId}`,
    { remedy: 'same release, other build: give the vmlinuz of the build that runs' },
  );
}

/** A running kernel's symbols, at the addresses where they are. */
export class KernelAddresses {
  readonly image: KernelImage;
  /** What KASLR added. */
  readonly offset: number;

  constructor(image: KernelImage, offset: number) {
    this.image = image;
    this.offset = offset;
  }

  /** Where a link address is. Per-CPU offsets (not negative) stay as they are. */
  relocate(link: number): number {
    return link < 0 ? link + this.offset : link;
  }

  find(name: string): number | undefined {
    const symbol = this.image.symbols.findUnique(name);
    return symbol && this.relocate(symbol.address);
  }

  expect(...names: readonly string[]): number {
    for (const name of names) {
      const address = this.find(name);
      if (address !== undefined) return address;
    }
    throw new LivegraftError('kernel-unsupported', `the kernel has no symbol ${names.join(' or ')}`, {
      remedy: 'this kernel differs from those that livegraft knows (5.10 and later)',
    });
  }

  /** `function+0x12` */
  describe(address: number, back: 0 | 1 = 0): string | undefined {
    const symbol = this.image.symbols.findCovering(address - this.offset);
    return symbol && `${symbol.name}+${hex(address + back - this.relocate(symbol.address))}`;
  }

  /** The image's bytes at a running address. */
  imageBytes(address: number, sizeBytes: number): Uint8Array | undefined {
    return this.image.elf.bytesAt(linkAddress(address - this.offset), sizeBytes);
  }
}
