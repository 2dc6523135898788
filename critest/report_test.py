#!/usr/bin/env python3
"""What report.py makes of a run: `python3 critest/report_test.py`."""

import contextlib
import io
import pathlib
import tempfile
import unittest

import report

CASE = '<testcase name="{name}" status="{status}" time="1.5">{inner}</testcase>'
SKIP = "Broken\tis broken\t7\n?Needs\tneeds a module\t8\n# a comment\n\n"


def case(name, status, inner=""):
    return CASE.format(name=name, status=status, inner=inner)


class Report(unittest.TestCase):
    def run_report(self, *cases):
        """The lines of the table, and the exit code."""
        with tempfile.TemporaryDirectory() as folder:
            junit, skip = pathlib.Path(folder, "junit.xml"), pathlib.Path(folder, "skip.txt")
            junit.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
            skip.write_text(SKIP)
            out = io.StringIO()
            with contextlib.redirect_stdout(out), self.assertRaises(SystemExit) as end:
                report.main(["report.py", str(junit), str(skip)])
        return out.getvalue().splitlines(), end.exception.code

    def test_what_passes_or_fails_as_expected_is_fine(self):
        lines, code = self.run_report(
            case("[It] [k8s.io] Fine", "passed"),
            case("[It] [k8s.io] Broken as known", "failed", '<failure message="no"/>'),
            case("[It] [k8s.io] Needs much", "skipped", '<skipped message="skipped - no module"/>'),
            case("[It] [k8s.io] Needs little", "passed"),
            case("[It] [k8s.io] Not in focus", "skipped", '<skipped message="skipped"/>'),
        )
        self.assertEqual(code, 0)
        self.assertEqual(lines[-1], "4 specs: 1 excused, 2 passed, 1 skipped")
        self.assertIn("excused     1.50  Broken as known", lines)
        self.assertNotIn("Not in focus", "\n".join(lines))

    def test_everything_else_fails_the_run(self):
        for name, status, inner, result in [
            ("Fine", "failed", '<failure message="wrong"/>', "FAILED"),
            ("Fine", "panicked", '<error message="wrong"/>', "FAILED"),
            ("Needs much", "failed", '<failure message="wrong"/>', "FAILED"),
            ("Broken no more", "passed", "", "MENDED"),
            ("Fine", "skipped", '<skipped message="skipped - why ever"/>', "SKIPPED"),
        ]:
            lines, code = self.run_report(case(f"[It] [k8s.io] {name}", status, inner))
            self.assertEqual((code, lines[0].split()[0]), (1, result))
        _, code = self.run_report(case("[SynchronizedBeforeSuite]", "failed", '<failure message="no"/>'))
        self.assertEqual(code, 1)

    def test_a_run_without_a_spec_proves_nothing(self):
        self.assertEqual(self.run_report(case("[BeforeSuite]", "passed"))[1], 1)


if __name__ == "__main__":
    unittest.main()
