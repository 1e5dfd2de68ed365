/** Numbers below a bound, the same sequence for the same seed everywhere (Lehmer's generator). */
export function randomOf(seed: number): (below: number) => number {
  let state = (Math.imul(seed, 48271) >>> 1) % 0x7fffffff || 1;
  return (below) => {
    state = (state * 48271) % 0x7fffffff;
    return state % below;
  };
}

const WORDS = [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff];

/** Flips bytes, plants absurd words, cuts, repeats: where headers are, more often. */
export function damage(original: Uint8Array, random: (below: number) => number): Uint8Array {
  let bytes = original.slice();
  for (let i = 1 + random(6); i > 0 && bytes.length > 0; i--) {
    const at =
      random(3) === 0
        ? random(Math.min(64, bytes.length))
        : random(3) === 0
          ? bytes.length - 1 - random(Math.min(bytes.length, 1200))
          : random(bytes.length);
    switch (random(8)) {
      case 0:
        if (random(3) === 0) bytes = bytes.slice(0, random(bytes.length));
        break;
      case 1:
      case 2:
        if (at + 4 <= bytes.length)
          new DataView(bytes.buffer).setUint32(at, WORDS[random(WORDS.length)] as number, true);
        break;
      case 3:
        bytes.copyWithin(at, random(bytes.length), Math.min(bytes.length, at + 64));
        break;
      default:
        bytes[at] = random(256);
    }
  }
  return bytes;
}
