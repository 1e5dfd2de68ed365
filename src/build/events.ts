/** What a build tells while it works. */
export type BuildEvent =
  | {
      readonly kind: 'step';
      readonly step: 'copy' | 'compile' | 'compare' | 'prove' | 'write';
      readonly detail: string;
    }
  | { readonly kind: 'notice'; readonly text: string };
