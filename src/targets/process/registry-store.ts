import { hex } from '../../base/brand.js';
import { decodeText } from '../../base/byte-reader.js';
import { crc32 } from '../../base/crc32.js';
import { LivegraftError } from '../../base/errors.js';
import type { ProcessMemory } from './memory.js';
import type { Mapping } from './proc.js';
import type { Registry } from './registry.js';

/**
 * Where the registry lies in the target: a private memfd mapping, found again by its name in `/proc/PID/maps`.
 *
 * Layout: two copies of {@link COPY_BYTES} each, then the task slots. A copy is a header (magic, format version,
 * sequence number, length and CRC-32 of the text) and JSON text. An update writes the older copy, text first, header
 * last, so that one whole copy exists at every instant; the valid copy with the higher sequence number counts.
 */
const REGISTRY_MEMFD_NAME = 'livegraft:registry';
const COPY_BYTES = 512 * 1024;
export const SLOTS_OFFSET = 2 * COPY_BYTES;

const HEADER_BYTES = 32;
const MAGIC = 0x6765_766c; // "lveg"
const REGISTRY_FORMAT_VERSION = 4;

export function findRegistryMapping(mappings: readonly Mapping[]): Mapping | undefined {
  return mappings.find((m) => m.name.startsWith(`/memfd:${REGISTRY_MEMFD_NAME}`) && m.fileOffset === 0);
}

interface Copy {
  readonly sequence: number;
  readonly registry: Registry;
}

type RegistryMemory = Pick<ProcessMemory, 'pid' | 'write' | 'readExactly'>;

/** One instance for each process: it counts the updates, and of two the later ones would be taken for the older. */
export class RegistryStore {
  readonly address: number;
  readonly #memory: RegistryMemory;
  #sequence = 0;

  constructor(memory: RegistryMemory, address: number) {
    this.#memory = memory;
    this.address = address;
  }

  /** For a child that fork has just made: the same copies in memory of its own. */
  forProcess(memory: RegistryMemory): RegistryStore {
    const store = new RegistryStore(memory, this.address);
    store.#sequence = this.#sequence;
    return store;
  }

  /** The newest whole copy, undefined when none was ever written. Throws for one that a newer livegraft wrote. */
  read(): Registry | undefined {
    const copies = [0, 1].map((index) => this.#readCopy(index)).filter((copy) => copy !== undefined);
    const newest = copies.sort((a, b) => b.sequence - a.sequence)[0];
    if (newest === undefined) return undefined;
    this.#sequence = newest.sequence;
    return newest.registry;
  }

  write(registry: Registry): void {
    const text = new TextEncoder().encode(JSON.stringify(registry));
    if (text.length > COPY_BYTES - HEADER_BYTES) {
      throw new LivegraftError(
        'registry-full',
        `process ${this.#memory.pid}: the registry needs ${text.length} bytes and has ${COPY_BYTES - HEADER_BYTES}`,
        { remedy: 'revert patches that are no longer needed, or combine them into one' },
      );
    }
    // A failed update was none: the next one writes to the same copy, and the other stays whole.
    const sequence = this.#sequence + 1;
    const at = this.address + (sequence % 2) * COPY_BYTES;
    const header = Buffer.alloc(HEADER_BYTES);
    this.#memory.write(at, header);
    this.#memory.write(at + HEADER_BYTES, text);
    header.writeUInt32LE(MAGIC, 0);
    header.writeUInt32LE(REGISTRY_FORMAT_VERSION, 4);
    header.writeBigUInt64LE(BigInt(sequence), 8);
    header.writeUInt32LE(text.length, 16);
    header.writeUInt32LE(crc32(text), 20);
    this.#memory.write(at, header);
    this.#sequence = sequence;
  }

  #readCopy(index: number): Copy | undefined {
    const at = this.address + index * COPY_BYTES;
    const header = this.#memory.readExactly(at, HEADER_BYTES);
    if (header.readUInt32LE(0) !== MAGIC) return undefined;
    const version = header.readUInt32LE(4);
    if (version !== REGISTRY_FORMAT_VERSION) {
      throw new LivegraftError(
        'registry-version',
        `process ${this.#memory.pid}: the registry at ${hex(at)} has format ${version}, this livegraft knows ${REGISTRY_FORMAT_VERSION}`,
        { remedy: 'use the version of livegraft that patched the process', details: { version } },
      );
    }
    const sizeBytes = header.readUInt32LE(16);
    // Of no bytes the checksum is 0 as well.
    if (sizeBytes === 0 || sizeBytes > COPY_BYTES - HEADER_BYTES) return undefined;
    const text = this.#memory.readExactly(at + HEADER_BYTES, sizeBytes);
    if (crc32(text) !== header.readUInt32LE(20)) return undefined;
    return {
      sequence: Number(header.readBigUInt64LE(8)),
      registry: JSON.parse(decodeText(text)) as Registry,
    };
  }
}
