/** Packets of the GDB remote serial protocol (gdb manual, appendix E.1). Payloads are strings of bytes (latin1). */

/** A packet longer than this, as it travels or unpacked, is no answer to anything livegraft asks. */
const MAX_PACKET_BYTES = 4 * 1024 * 1024;
/** In a run, the character behind `*` is the number of repetitions and this. */
const RUN_BASE = 29;

/** What a stub sends: a packet, its refusal of one of ours, or what can be no packet. */
export type GdbReceived =
  | { readonly kind: 'packet'; readonly payload: string }
  | { readonly kind: 'refusal' | 'wrongChecksum' | 'tooLong' };

/** Takes apart what comes from a stub, in pieces of any size: framing, checksums, escapes, run lengths. */
export class GdbPacketReader {
  #buffer = '';

  /** Everything that is whole by now. Never throws, and keeps no more than one packet may be long. */
  *receive(bytes: Buffer): IterableIterator<GdbReceived> {
    this.#buffer += bytes.toString('latin1');
    for (;;) {
      const start = this.#buffer.search(/[$-]/);
      if (start < 0) {
        this.#buffer = '';
        return;
      }
      if (this.#buffer[start] === '-') {
        this.#buffer = this.#buffer.slice(start + 1);
        yield { kind: 'refusal' };
        continue;
      }
      const end = this.#buffer.indexOf('#', start);
      if (end < 0 || end + 3 > this.#buffer.length) {
        this.#buffer = this.#buffer.slice(start);
        if (this.#buffer.length <= MAX_PACKET_BYTES) return;
        this.#buffer = '';
        yield { kind: 'tooLong' };
        return;
      }
      const body = this.#buffer.slice(start + 1, end);
      const checksum = Number.parseInt(this.#buffer.slice(end + 1, end + 3), 16);
      this.#buffer = this.#buffer.slice(end + 3);
      if (sumOf(body) !== checksum) {
        yield { kind: 'wrongChecksum' };
        continue;
      }
      const payload = decodeBody(body);
      yield payload === undefined ? { kind: 'tooLong' } : { kind: 'packet', payload };
    }
  }
}

function sumOf(body: string): number {
  let sum = 0;
  for (let i = 0; i < body.length; i++) sum = (sum + body.charCodeAt(i)) & 0xff;
  return sum;
}

/** A packet as it travels. */
export function framed(payload: string): string {
  return `$${payload}#${sumOf(payload).toString(16).padStart(2, '0')}`;
}

/** Undoes `}` escapes and `*` run lengths; undefined for what would be too long. */
function decodeBody(body: string): string | undefined {
  if (!/[}*]/.test(body)) return body;
  const out: string[] = [];
  let sizeBytes = 0;
  // A run repeats the character before it, which may be the last of another run.
  let last = '';
  for (let i = 0; i < body.length && sizeBytes <= MAX_PACKET_BYTES; i++) {
    let piece = body[i] as string;
    if (piece === '*') piece = last.repeat(Math.max(0, (body.charCodeAt(++i) || 0) - RUN_BASE));
    else {
      if (piece === '}') piece = String.fromCharCode((body.charCodeAt(++i) || 0) ^ 0x20);
      last = piece;
    }
    out.push(piece);
    sizeBytes += piece.length;
  }
  return sizeBytes > MAX_PACKET_BYTES ? undefined : out.join('');
}

/** Bytes as they travel in a binary packet (`X`). */
export function escapeBinary(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    .toString('latin1')
    .replace(/[#$*}]/g, (char) => `}${String.fromCharCode(char.charCodeAt(0) ^ 0x20)}`);
}
