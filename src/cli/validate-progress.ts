import type { Output } from './output.js';

const BAR_WIDTH = 24;
const REDRAW_EVERY_MS = 50;
/** What is done sooner is done without a bar. */
const WORTH_SHOWING_BYTES = 1024 * 1024;

/** How far a run of `validate` is, by bytes of its files: one line that is redrawn, where the standard error is a terminal. */
export class ValidateProgress {
  readonly #output: Output;
  readonly #nowMs: () => number;
  readonly #sizes = new Map<string, number>();
  /** Of files that are begun and not done, how many of their bytes are. */
  readonly #begun = new Map<string, number>();
  #totalBytes = 0;
  #doneBytes = 0;
  #doneFiles = 0;
  #files = 0;
  #columns = 0;
  #drawnAt = 0;
  #isShown = false;

  constructor(output: Output, nowMs = () => performance.now()) {
    this.#output = output;
    this.#nowMs = nowMs;
  }

  start(files: readonly { readonly file: string; readonly sizeBytes: number }[]): void {
    for (const { file, sizeBytes } of files) {
      this.#sizes.set(file, sizeBytes);
      this.#totalBytes += sizeBytes;
    }
    this.#files = files.length;
    this.#isShown = this.#output.isProgressShown && this.#totalBytes > WORTH_SHOWING_BYTES;
    this.#columns = this.#output.io.errorColumns ?? 0;
    this.#draw('', true);
  }

  /** `fraction` of a file is done, from 0 to 1. */
  advance(file: string, fraction: number): void {
    this.#begun.set(file, fraction * (this.#sizes.get(file) ?? 0));
    this.#draw(file, false);
  }

  finish(file: string): void {
    this.#begun.delete(file);
    this.#doneBytes += this.#sizes.get(file) ?? 0;
    this.#doneFiles++;
    this.#draw(file, this.#doneFiles === this.#files);
  }

  clear(): void {
    if (this.#isShown) this.#output.io.err('\r\x1b[K');
  }

  #draw(file: string, isDue: boolean): void {
    const now = this.#nowMs();
    if (!this.#isShown || (!isDue && now - this.#drawnAt < REDRAW_EVERY_MS)) return;
    this.#drawnAt = now;
    let bytes = this.#doneBytes;
    for (const begun of this.#begun.values()) bytes += begun;
    const share = this.#totalBytes === 0 ? 1 : Math.min(1, bytes / this.#totalBytes);
    const filled = Math.round(share * BAR_WIDTH);
    const bar = `[${'#'.repeat(filled)}${'-'.repeat(BAR_WIDTH - filled)}] ${Math.floor(share * 100)} % `;
    const line = `${bar}${this.#doneFiles}/${this.#files} ${file.replace(/^.*\//, '')}`;
    this.#output.io.err(`\r\x1b[K${line.slice(0, this.#columns - 1)}`);
  }
}
