/**
 * Makes a failing list of choices short and simple: leaves out stretches, sets to 0 what need not be anything else, until
 * nothing more can go or `mostTries` lists have been tried. Deterministic.
 *
 * @param fails whether a list still fails in the same way.
 */
export async function shrinkChoices(
  list: readonly number[],
  fails: (list: readonly number[]) => Promise<boolean>,
  mostTries = 4000,
): Promise<readonly number[]> {
  let best = list;
  let tries = 0;
  const take = async (candidate: readonly number[]): Promise<boolean> => {
    tries += 1;
    if (!(await fails(candidate))) return false;
    best = candidate;
    return true;
  };
  for (let hasShrunk = true; hasShrunk && tries < mostTries; ) {
    hasShrunk = false;
    for (let size = Math.max(1, best.length >> 1); size >= 1 && tries < mostTries; size >>= 1) {
      for (let at = best.length - size; at >= 0 && tries < mostTries; at -= size) {
        if (await take([...best.slice(0, at), ...best.slice(at + size)])) {
          hasShrunk = true;
          continue;
        }
        const stretch = best.slice(at, at + size);
        if (stretch.every((choice) => choice === 0)) continue;
        if (await take([...best.slice(0, at), ...stretch.map(() => 0), ...best.slice(at + size)]))
          hasShrunk = true;
      }
    }
  }
  return best;
}
