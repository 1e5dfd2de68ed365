import { InvalidArgumentError } from 'commander';
import type { ClaimSource } from '../validate/findings.js';

/** Parsers of option values, for commander. */

export function parsePid(text: string): number {
  const pid = Number(text);
  if (!Number.isInteger(pid) || pid <= 0 || pid > 2 ** 22)
    throw new InvalidArgumentError('a process id is a positive number.');
  return pid;
}

export function parseSeconds(text: string): number {
  const seconds = Number(text);
  if (!Number.isFinite(seconds) || seconds < 0 || text.trim() === '')
    throw new InvalidArgumentError('give a number of seconds.');
  return seconds;
}

export function parseSeed(text: string): number {
  const seed = Number(text);
  if (text.trim() === '' || !Number.isInteger(seed) || seed < 0 || seed > 0xffffffff)
    throw new InvalidArgumentError('give a number from 0 to 4294967295.');
  return seed;
}

export function parseSwitches(text: string): number {
  const count = Number(text);
  if (!Number.isInteger(count) || count <= 0) throw new InvalidArgumentError('give a positive number.');
  return count;
}

export function parseCount(text: string): number {
  const count = Number(text);
  if (!Number.isInteger(count) || count < 1 || count > 256)
    throw new InvalidArgumentError('give a number from 1 to 256.');
  return count;
}

export function parseKernelRelease(text: string): string {
  if (!/^\d+\.\d+/.test(text)) throw new InvalidArgumentError('give a release, such as 6.1.0 (uname -r).');
  return text;
}

const CLAIM_SOURCES: readonly ClaimSource[] = ['dwarf', 'debug-frame', 'orc', 'frame-pointer'];

export function parseAgree(
  text: string,
  before: readonly (readonly [ClaimSource, ClaimSource])[],
): readonly (readonly [ClaimSource, ClaimSource])[] {
  const [a, b, ...rest] = text.split(',').map((name) => CLAIM_SOURCES.find((source) => source === name));
  if (a === undefined || b === undefined || rest.length > 0 || a === b)
    throw new InvalidArgumentError(`give two of ${CLAIM_SOURCES.join(', ')}, with a comma between.`);
  return [...before, [a, b]];
}
