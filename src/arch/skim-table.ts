/**
 * The instructions of a stretch of code that can change a frame or lead elsewhere, in typed arrays; of all others no more than
 * where they begin. What is looked at when only stack pointer and frame pointer are followed.
 */
export class SkimTable {
  count = 0;
  /** Position of the first byte. */
  positions = new Int32Array(0);
  /** {@link FlowCode}, and the length times 16. */
  flows = new Uint8Array(0);
  /** As {@link InstructionTable.effects}. */
  effects = new Int32Array(0);
  /** The effect's value; the target's position of a jump, branch or call with a direct one. */
  values = new Int32Array(0);
  /** How many of {@link transfers} there are. */
  transferCount = 0;
  /** Indexes of the entries whose flow is another than "next", in order. */
  transfers = new Int32Array(0);
  /** A bit per byte of code: whether an instruction starts there. */
  starts = new Uint32Array(0);

  /** Begins anew, for code up to a position. */
  clear(sizeBytes: number): void {
    this.count = 0;
    this.transferCount = 0;
    const words = (sizeBytes >>> 5) + 2;
    if (this.starts.length < words) this.starts = new Uint32Array(words + (words >> 2));
    else this.starts.fill(0, 0, words);
  }

  reserve(capacity: number): void {
    if (capacity <= this.positions.length) return;
    const size = Math.max(capacity, this.positions.length * 2, 64);
    const { positions, flows, effects, values, transfers } = this;
    this.positions = new Int32Array(size);
    this.flows = new Uint8Array(size);
    this.effects = new Int32Array(size);
    this.values = new Int32Array(size);
    this.transfers = new Int32Array(size);
    this.positions.set(positions);
    this.flows.set(flows);
    this.effects.set(effects);
    this.values.set(values);
    this.transfers.set(transfers);
  }
}

/** Goes over stretches of code for what matters to a frame. */
export interface InstructionSkimmer {
  /**
   * Appends what `[start, end)` holds to the table, whose bitmap reaches that far. Returns where it stopped: at `end`, or at the first
   * byte that no instruction within starts at. Never throws on any bytes.
   */
  skim(bytes: Uint8Array, start: number, end: number, into: SkimTable): number;
}
