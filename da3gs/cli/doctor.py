"""`da3gs doctor`: what works on this machine."""

from dataclasses import dataclass

from da3gs.cli.console import print_json, print_result

EXIT_BROKEN = 1
_MARKS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


@dataclass
class DoctorCommand:
    """Look at this machine and say what works, what does not, and what to do about it.

    Nothing is compiled, downloaded or rendered. Exit status 0 when everything that every command needs works (notes
    are about optional parts and speed), 1 otherwise.

    Examples:
      da3gs doctor
      da3gs doctor --json
      da3gs doctor --no-network
    """

    json: bool = False
    """Print one JSON object."""

    no_network: bool = False
    """Do not ask the model hub whether it answers."""

    def run(self) -> int:
        from da3gs.doctor import as_json, core_works, run_checks

        checks = run_checks(network=not self.no_network)
        if self.json:
            print_json(as_json(checks))
        else:
            width = max(len(check.name) for check in checks)
            for check in checks:
                print_result(f"{_MARKS[check.status]}  {check.name:<{width}}  {check.found}")
                if check.fix:
                    print_result(f"{'':<{width + 11}}-> {check.fix}")
            works = core_works(checks)
            print_result("da3gs works here." if works else "da3gs does not work here yet; see the problems above.")
        return 0 if core_works(checks) else EXIT_BROKEN
