"""``python -m certs``: certificates of an installation, and its accounts in a cluster of Kubernetes."""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from certs import bootstrap
from certs.authority import Authority, Certificate, Holder, State, Wrong
from certs.bootstrap import ACCOUNTS, SHORTEST_S, Cluster, Token
from certs.objects import PROGRAMS, SERVICE, Refused

MADE: Final = Path(__file__).parent / "made"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code: 1 when something outside refuses, 2 when words are wrong."""
    given = _parser().parse_args(arguments)
    try:
        return given.run(given)
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Refused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m certs", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    make = commands.add_parser("make", help="make or renew certificates; what is still good is left as it is")
    make.set_defaults(run=_make)
    make.add_argument("--folder", type=Path, default=MADE, help="where they lie (%(default)s)")
    for name, meaning in (("api", "the API"), ("frontend", "the front end")):
        make.add_argument(
            f"--{name}", action="append", default=[], metavar="NAME", help=f"a name or address of {meaning}"
        )
    make.add_argument(
        "--account", action="append", default=[], choices=ACCOUNTS, help="who asks Kubernetes by a certificate"
    )
    make.add_argument("--service-namespace", default=SERVICE, help="of the accounts (%(default)s)")
    make.add_argument("--days", type=int, default=90, help="how long a certificate lasts (%(default)s)")
    make.add_argument("--authority-days", type=int, default=3650, help="how long the authority signs (%(default)s)")
    make.add_argument("--renew-before", type=int, default=30, metavar="DAYS", help="renew so long before (%(default)s)")
    make.add_argument("--json", action="store_true", help="say what was done as JSON")

    boot = commands.add_parser("bootstrap", help="make the accounts in a cluster, and a kubeconfig for each")
    boot.set_defaults(run=_bootstrap)
    boot.add_argument("--kubeconfig", type=Path, required=True, help="how to be the cluster's administrator")
    boot.add_argument("--folder", type=Path, default=MADE / "kubernetes", help="where they lie (%(default)s)")
    boot.add_argument("--namespace", default=PROGRAMS, help="of programs (%(default)s)")
    boot.add_argument("--service-namespace", default=SERVICE, help="of the accounts (%(default)s)")
    boot.add_argument("--account", action="append", choices=ACCOUNTS, help="for whom (all)")
    boot.add_argument("--lasting", type=int, default=3600, metavar="S", help="how long a token lasts (%(default)s)")
    boot.add_argument("--renew-before", type=int, metavar="S", help="renew so long before its end (a third of that)")
    boot.add_argument("--watch", action="store_true", help="go on, and keep the tokens fresh until SIGTERM")
    boot.add_argument("--json", action="store_true", help="say what was done as JSON")
    return parser


def _make(given: argparse.Namespace) -> int:
    holders = [
        *(Holder(name, names[0], tuple(names)) for name in ("api", "frontend") if (names := getattr(given, name))),
        # To Kubernetes it is the account itself, so it has the rights that are bound to that.
        *(
            Holder(f"client-{name}", f"system:serviceaccount:{given.service_namespace}:{name}")
            for name in dict.fromkeys(given.account)
        ),
    ]
    authority = Authority(
        given.folder, days=given.days, authority_days=given.authority_days, renew_before_days=given.renew_before
    )
    made = authority.carry_out(holders, datetime.now(UTC))
    if given.json:
        print(json.dumps([_certificate(each) for each in made]))
        return 0
    for each in made:
        why = f" ({each.reason})" if each.reason else ""
        print(f"{each.holder}: {each.state}{why}, until {each.until.isoformat()}: {each.path}")
    if all(each.state is State.KEPT for each in made):
        print("nothing had to be changed")
    return 0


def _certificate(of: Certificate) -> dict[str, str]:
    return {
        "holder": of.holder,
        "state": of.state,
        "reason": of.reason,
        "until": of.until.isoformat(),
        "certificate": str(of.path),
    }


def _bootstrap(given: argparse.Namespace) -> int:
    before = given.lasting // 3 if given.renew_before is None else given.renew_before
    if given.lasting < SHORTEST_S or not 0 < before < given.lasting:
        raise Wrong(
            f"a token lasts {SHORTEST_S} s at least, and is renewed before its end and not sooner than it begins"
        )
    if not given.kubeconfig.is_file():
        raise Wrong(f"there is no file {given.kubeconfig}")
    return asyncio.run(_booted(given, before))


async def _booted(given: argparse.Namespace, before: int) -> int:
    accounts = list(dict.fromkeys(given.account or ACCOUNTS))
    cluster = Cluster(await bootstrap.administrator(given.kubeconfig), given.namespace, given.service_namespace)

    def tell(what: Token | Refused) -> None:
        if isinstance(what, Refused):
            print(f"error: {what}", file=sys.stderr, flush=True)
        elif given.json:
            print(json.dumps(_token(what)), flush=True)
        else:
            print(f"{what.account}: {what.state}, until {what.until.isoformat()}: {what.kubeconfig}", flush=True)

    try:
        made = await cluster.prepare()
        if not given.json:
            print(f"{len(made)} objects are as deploy/kubernetes has them", flush=True)
        for account in accounts:
            tell(await cluster.give(account, given.folder, lasting_s=given.lasting, renew_before_s=before))
        if given.watch:
            fresh = bootstrap.keep_fresh(
                cluster, accounts, given.folder, tell, lasting_s=given.lasting, renew_before_s=before
            )
            await _until_told_to_end(asyncio.ensure_future(fresh))
    finally:
        await cluster.close()
    return 0


async def _until_told_to_end(work: "asyncio.Task[None]") -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    await asyncio.wait([work])
    if not work.cancelled():
        work.result()


def _token(of: Token) -> dict[str, str]:
    return {
        "account": of.account,
        "state": of.state,
        "until": of.until.isoformat(),
        "kubeconfig": str(of.kubeconfig),
    }


if __name__ == "__main__":
    sys.exit(main())
