/** A symbol that is not defined in the code: `targets` holds this of its index; of a dynamic symbol, of its index behind all others. */
export function externalTarget(symbolIndex: number): number {
  return -2 - symbolIndex;
}

/** The index of the symbol that a target stands for. */
export function symbolIndexOfTarget(target: number): number {
  return -2 - target;
}
