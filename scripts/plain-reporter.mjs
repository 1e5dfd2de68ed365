/** Ends a test run with one plain line: `N passed, N failed`, and how many were skipped, if any. */
export default class PlainReporter {
  onTestRunEnd(modules, errors) {
    let [passed, failed, skipped] = [0, errors.length, 0];
    for (const module of modules) {
      if (module.children.size === 0 && module.state() === 'failed') failed++;
      for (const test of module.children.allTests()) {
        const { state } = test.result();
        if (state === 'passed') passed++;
        else if (state === 'failed') failed++;
        else skipped++;
      }
    }
    const line = `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`;
    // Behind what the other reporters print.
    process.on('exit', () => process.stdout.write(`\n${line}\n`));
  }
}
