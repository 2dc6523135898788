#!/usr/bin/env python3
"""Makes a table of a critest run and says whether it counts as passed.

usage: report.py JUNIT_FILE SKIP_FILE

One line per spec: result, seconds, name, and for a spec that did not pass the reason. The results:

    passed
    skipped    critest left it out itself, since the machine or the runtime lacks what it needs, and SKIP_FILE says why
    excused    it failed, as SKIP_FILE says it does
    FAILED     it failed
    SKIPPED    critest left it out itself, and SKIP_FILE does not say why
    MENDED     it passed although SKIP_FILE says that it fails; take it out there

Ends with 1 if there is a result in capitals, or no result at all.
"""

import collections
import pathlib
import re
import sys
import xml.etree.ElementTree

# Specs that a focus, or critest itself (its benchmarks), filtered out.
FILTERED = "skipped"


def skips(path):
    """[(pattern, may pass, reason)] of the lines `[?]PATTERN<tab>REASON<tab>ISSUE`."""
    found = []
    for line in pathlib.Path(path).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern, reason, issue = line.split("\t")
        may_pass = pattern.startswith("?")
        found.append((re.compile(pattern.removeprefix("?")), may_pass, f"{reason} (issue {issue})"))
    return found


def results(junit, skips):
    """(result, seconds, name, why) of every spec that was not filtered out."""
    for case in xml.etree.ElementTree.parse(junit).getroot().iter("testcase"):
        name = case.get("name")
        if not name.startswith("[It] "):
            if case.get("status") not in ("passed", "skipped"):
                yield "FAILED", float(case.get("time")), name, case.get("status")
            continue
        name = name.removeprefix("[It] ").removeprefix("[k8s.io] ")
        status, seconds = case.get("status"), float(case.get("time"))
        skipped = case.find("skipped")
        said = skipped.get("message", "") if skipped is not None else ""
        if status == "skipped" and said == FILTERED:
            continue
        listed = next(((may_pass, reason) for pattern, may_pass, reason in skips if pattern.search(name)), None)
        if status == "skipped":
            result = ("skipped", listed[1]) if listed else ("SKIPPED", said)
        elif status == "passed":
            result = ("MENDED", listed[1]) if listed and not listed[0] else ("passed", "")
        else:
            result = ("excused", listed[1]) if listed and not listed[0] else ("FAILED", failure(case))
        yield result[0], seconds, name, result[1]


def failure(case):
    node = case.find("failure")
    if node is None:
        node = case.find("error")
    message = node.get("message", "") if node is not None else ""
    return " ".join(message.split())[:200] or case.get("status")


def main(arguments):
    rows = sorted(results(arguments[1], skips(arguments[2])), key=lambda row: (row[0] != "passed", row[0], row[2]))
    for result, seconds, name, why in rows:
        print(f"{result:8} {seconds:7.2f}  {name}" + (f"\n                  {why}" if why else ""))
    counts = collections.Counter(row[0] for row in rows)
    print(f"{len(rows)} specs: " + ", ".join(f"{count} {result}" for result, count in sorted(counts.items(), key=lambda c: c[0].lower())))
    sys.exit(1 if not rows or any(result.isupper() for result in counts) else 0)


if __name__ == "__main__":
    main(sys.argv)
