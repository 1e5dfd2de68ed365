/** The functions of the simulated program, and the objects that they are in. */

export const FUNCTIONS: readonly string[] = ['f', 'g', 'h', 'leaf', 'other', 'asm'];
/** Of the library. */
export const LIBRARY_FUNCTIONS: readonly string[] = ['x', 'y'];
export const ALL_FUNCTIONS: readonly string[] = [...FUNCTIONS, ...LIBRARY_FUNCTIONS];
export const PROGRAM = 'program';
export const LIBRARY = 'library';
export const OBJECTS: readonly string[] = [PROGRAM, LIBRARY];

export function objectOf(name: string): string {
  return LIBRARY_FUNCTIONS.includes(name) ? LIBRARY : PROGRAM;
}
