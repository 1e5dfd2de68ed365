const FRAME_MAGIC = 0xfd2fb528;
const SKIPPABLE_MAGIC = 0x184d2a50;
const SKIPPABLE_MASK = 0xfffffff0;
const RLE_BLOCK = 1;

/**
 * The largest window in bytes that a frame of these bytes asks its decoder to keep (RFC 8878, 3.1.1): a few bytes can ask for terabytes.
 * Frames behind damage don't count, since no decoder comes to them.
 */
export function largestZstdWindow(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let largest = 0;
  let at = 0;
  while (at + 8 <= bytes.length) {
    const magic = view.getUint32(at, true);
    if ((magic & SKIPPABLE_MASK) >>> 0 === SKIPPABLE_MAGIC) {
      at += 8 + view.getUint32(at + 4, true);
      continue;
    }
    if (magic !== FRAME_MAGIC) break;
    const descriptor = bytes[at + 4] as number;
    const isSingle = (descriptor & 0x20) !== 0;
    const sizeBytes = [isSingle ? 1 : 0, 2, 4, 8][descriptor >> 6] as number;
    const dictionaryBytes = [0, 1, 2, 4][descriptor & 3] as number;
    const sizeAt = at + 5 + (isSingle ? 0 : 1) + dictionaryBytes;
    if (sizeAt + sizeBytes > bytes.length) break;
    largest = Math.max(
      largest,
      isSingle ? contentSize(view, sizeAt, sizeBytes) : windowOf(bytes[at + 5] as number),
    );
    at = endOfBlocks(view, sizeAt + sizeBytes) + ((descriptor & 4) !== 0 ? 4 : 0);
  }
  return largest;
}

function contentSize(view: DataView, at: number, sizeBytes: number): number {
  if (sizeBytes === 1) return view.getUint8(at);
  if (sizeBytes === 2) return view.getUint16(at, true) + 256;
  return sizeBytes === 4 ? view.getUint32(at, true) : Number(view.getBigUint64(at, true));
}

function windowOf(descriptor: number): number {
  const base = 2 ** (10 + (descriptor >> 3));
  return base + (base / 8) * (descriptor & 7);
}

function endOfBlocks(view: DataView, start: number): number {
  let at = start;
  while (at + 3 <= view.byteLength) {
    const header = view.getUint16(at, true) | (view.getUint8(at + 2) << 16);
    at += 3 + (((header >> 1) & 3) === RLE_BLOCK ? 1 : header >>> 3);
    if ((header & 1) !== 0) return at;
  }
  return view.byteLength;
}
