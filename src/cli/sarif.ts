import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { FINDING_CODES, type Finding, REMEDIES } from '../validate/findings.js';
import { describePlace } from '../validate/places.js';
import { VERSION } from './conventions.js';
import type { FileReport } from './validate-files.js';

/** A SARIF 2.1.0 log (OASIS, "Static Analysis Results Interchange Format") of one run. */
export function toSarif(reports: readonly FileReport[]): unknown {
  const codes = Object.keys(FINDING_CODES) as (keyof typeof FINDING_CODES)[];
  return {
    $schema: 'https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json',
    version: '2.1.0',
    runs: [
      {
        tool: {
          driver: {
            name: 'livegraft validate',
            version: VERSION,
            rules: codes.map((code) => ({
              id: code,
              defaultConfiguration: { level: FINDING_CODES[code] },
              help: { text: REMEDIES[code] },
            })),
          },
        },
        invocations: [
          {
            executionSuccessful: reports.every((report) => report.kind === 'validated'),
            toolExecutionNotifications: reports.flatMap((report) =>
              report.kind === 'unreadable'
                ? [
                    {
                      level: 'error',
                      message: { text: report.message },
                      locations: [{ physicalLocation: artifact(report.file) }],
                    },
                  ]
                : [],
            ),
          },
        ],
        results: reports.flatMap((report) =>
          report.kind === 'validated'
            ? report.findings.map((finding) => toResult(report.file, finding, codes.indexOf(finding.code)))
            : [],
        ),
      },
    ],
  };
}

function artifact(file: string) {
  return { artifactLocation: { uri: pathToFileURL(resolve(file)).href } };
}

function toResult(file: string, finding: Finding, ruleIndex: number) {
  const { code, level, message, claimed, derived, place, from, source, repeats } = finding;
  const details = [
    message,
    claimed === undefined ? '' : `claimed: ${claimed}`,
    derived === undefined ? '' : `derived: ${derived}`,
    from === undefined ? '' : `reached from ${describePlace(from)}`,
  ];
  return {
    ruleId: code,
    ruleIndex,
    level,
    message: { text: details.filter((line) => line !== '').join('; ') },
    locations: [
      {
        physicalLocation: {
          ...artifact(file),
          ...(place !== undefined &&
            place.address >= 0 && { address: { absoluteAddress: place.address, kind: 'instruction' } }),
        },
        ...(place !== undefined && {
          logicalLocations: [
            {
              name: describePlace(place),
              kind: 'function',
              fullyQualifiedName: place.function ?? place.section,
            },
          ],
        }),
      },
    ],
    partialFingerprints: {
      place: `${code}/${place === undefined ? '' : describePlace(place)}/${source ?? ''}`,
    },
    occurrenceCount: repeats + 1,
  };
}
