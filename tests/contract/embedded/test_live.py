"""The embedded feed and queue keep the contracts of their ports."""

from tests.contract.embedded.basic import EmbeddedAdmission, EmbeddedLiveFeed
from tests.contract.suites import admission, fairness, live_feed


class TestLiveFeed(EmbeddedLiveFeed, live_feed.LiveFeedContract): ...


class TestAdmission(EmbeddedAdmission, admission.AdmissionContract): ...


TestAdmissionMachine = admission.admission_machine(EmbeddedAdmission().make)


class TestFairness(EmbeddedAdmission, fairness.FairnessContract): ...
