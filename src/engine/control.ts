/** What the caller may ask for while a transition runs. Each request is honoured at the engine's next step. */
export class TransitionControl {
  #stop = false;
  #force = false;
  #reverse: string | undefined;

  /** Leave the transition where it is: consistent, to be continued or reversed later. */
  stop(): void {
    this.#stop = true;
  }

  /** Switch the rest unchecked. The result says so for good. A later reverse checks again. */
  force(): void {
    this.#force = true;
  }

  /** Go the other way, by the same rules. Too late once every task has switched and the target is told to finish. */
  reverse(why: string): void {
    this.#reverse = why;
  }

  get stopRequested(): boolean {
    return this.#stop;
  }

  /** Whether anything was asked for that the engine has not taken up. */
  get isPending(): boolean {
    return this.#stop || this.#force || this.#reverse !== undefined;
  }

  takeForce(): boolean {
    const force = this.#force;
    this.#force = false;
    return force;
  }

  takeReverse(): string | undefined {
    const why = this.#reverse;
    this.#reverse = undefined;
    return why;
  }
}
