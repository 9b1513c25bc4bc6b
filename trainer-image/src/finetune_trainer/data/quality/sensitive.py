"""Keys, passwords and personal data in the examples: a model can learn them by heart and say them to anyone.

What is looked for is what has a form of its own. Keys of services: the detectors of detect-secrets (the fork that
Prisma Cloud keeps, since Yelp's has no release after 2024), and five prefixes of model hubs and providers that it does
not have. Personal data: telephone numbers with their country by Google's libphonenumber, card, account and social
security numbers whose check digits are right by python-stdnum, and e-mail addresses. Names, street addresses and
passwords in prose have no such form and are not found.

Nothing is sent anywhere (the detectors could ask the services whether a key is alive: they are not asked to), and a
value that is found is neither kept nor said: only its kind, and where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from detect_secrets.plugins import (
    artifactory,
    aws,
    azure_storage_key,
    basic_auth,
    discord,
    github_token,
    jwt,
    mailchimp,
    npm,
    private_key,
    sendgrid,
    slack,
    square_oauth,
    stripe,
    twilio,
)
from phonenumbers import PhoneNumberMatcher
from stdnum import iban, luhn
from stdnum.us import ssn

from finetune_trainer.data.quality.first_look import FirstLook, Marks
from finetune_trainer.data.texts import texts

# Left out of detect-secrets': what takes any word of high entropy or any word after "password" (half of all lines are
# then found), and IBM's four, which are as slow as all others together. With each, the marks of what it can find.
DETECTORS = (
    (
        "artifactory",
        "a key of Artifactory",
        artifactory.ArtifactoryDetector,
        Marks(("AKC",), small=("artif", "jfrog", "buildkit")),
    ),
    ("aws", "an access key of AWS", aws.AWSKeyDetector, Marks(("A3T", "ABIA", "ACCA", "AKIA", "ASIA"), small=("aws",))),
    ("azure", "a storage key of Azure", azure_storage_key.AzureStorageKeyDetector, Marks(("==",))),
    ("url_password", "a password in a URL", basic_auth.BasicAuthDetector, Marks(("://",))),
    ("discord", "a token of Discord", discord.DiscordBotTokenDetector, Marks(pattern=r"\.[\w-]{6}\.[\w-]{27}")),
    ("github", "a token of GitHub", github_token.GitHubTokenDetector, Marks(pattern="gh[opsur]_")),
    ("jwt", "a JSON web token", jwt.JwtTokenDetector, Marks(("eyJ",))),
    ("mailchimp", "a key of Mailchimp", mailchimp.MailchimpDetector, Marks(pattern="-us[0-9]")),
    ("npm", "a token of npm", npm.NpmDetector, Marks(("npm_", "_authToken", "NPM"))),
    ("private_key", "a private key", private_key.PrivateKeyDetector, Marks(("PRIVATE KEY", "PuTTY-User-Key-File"))),
    ("sendgrid", "a key of SendGrid", sendgrid.SendGridDetector, Marks(("SG.",))),
    ("slack", "a token of Slack", slack.SlackDetector, Marks(small=("xox", "hooks.slack.com"))),
    ("square", "a secret of Square", square_oauth.SquareOAuthDetector, Marks(("sq0csp-",))),
    ("stripe", "a key of Stripe", stripe.StripeDetector, Marks(("k_live_",))),
    ("twilio", "a key of Twilio", twilio.TwilioKeyDetector, Marks(("AC", "SK"))),
)
# By the providers' documentation of their keys' forms.
PREFIXES = (
    ("anthropic", "a key of Anthropic", "sk-ant-", r"[a-z0-9]{2,12}-[\w-]{20}"),
    ("gitlab", "a token of GitLab", "glpat-", r"[\w-]{20}"),
    ("google", "a key of Google", "AIza", r"[\w-]{35}"),
    ("hugging_face", "a token of Hugging Face", "hf_", r"[A-Za-z]{30,40}(?![A-Za-z0-9])"),
    ("openai", "a key of OpenAI", "sk-", r"[\w-]{20,200}T3BlbkFJ[\w-]{20}"),
)
EMAIL = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])", re.ASCII)
# RFC 2606: names that belong to nobody.
NOBODY = re.compile(r"(?:@|\.)(?:example\.(?:com|org|net)|example|invalid|test|localhost)$", re.IGNORECASE)
CARD = re.compile(
    r"(?<![\w.-])(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|3[47]\d\d|6(?:011|5\d\d))(?:[ -]?\d){11,12}(?![\w-])", re.ASCII
)
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])", re.ASCII)
SSN = re.compile(r"(?<![\w-])\d{3}-\d\d-\d{4}(?![\w-])", re.ASCII)

# Marks: nine digits with at most a blank or a dash between them; the beginning of an IBAN; a plus and so many digits
# after it as the shortest number with its country has, with no more between them than the library allows.
NINE_DIGITS = r"[0-9](?:[ -]?[0-9]){8}"
IBAN_BEGINS = r"[0-9]{2}(?<=[A-Z]{2}[0-9]{2})(?: ?[A-Z0-9]{4}){2}"
PHONE = r"[+\uff0b](?:[^\d+\uff0b]{0,9}\d){6}"

# Some of the detectors' patterns take a time that grows with the square of the text: it is read in pieces.
PIECE, SHARED = 8192, 1024  # characters of a piece, and how many of them the next one has, too

Search = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of what is looked for. `check` is its name in the report, `words` what it is called in a sentence;
    `search` finds nothing in a text without its marks."""

    check: str
    words: str
    personal: bool
    search: Search
    marks: Marks


@cache
def kinds() -> tuple[Kind, ...]:
    """All of them, keys before personal data."""
    detectors = [
        Kind(f"secret_{name}", words, False, _detects(made()), marks) for name, words, made, marks in DETECTORS
    ]
    prefixes = [
        Kind(f"secret_{name}", words, False, _begins(prefix, rest), Marks((prefix,)))
        for name, words, prefix, rest in PREFIXES
    ]
    return (
        *detectors,
        *prefixes,
        Kind("personal_card", "the number of a payment card", True, _has_card, Marks(pattern=NINE_DIGITS)),
        Kind("personal_iban", "the number of a bank account", True, _has_iban, Marks(pattern=IBAN_BEGINS)),
        Kind("personal_ssn", "a social security number", True, _has_ssn, Marks(pattern=NINE_DIGITS)),
        Kind("personal_phone", "a telephone number", True, _has_phone, Marks(pattern=PHONE)),
        Kind("personal_email", "an e-mail address", True, _has_email, Marks(("@",))),
    )


@cache
def _first_look() -> FirstLook:
    return FirstLook([kind.marks for kind in kinds()])


def found_in(text: str) -> Iterator[Kind]:
    """The kinds of which the text holds at least one."""
    found: set[int] = set()
    for part in pieces(text):
        found.update(index for index in _first_look().worth(part) if kinds()[index].search(part))
    return (kinds()[index] for index in sorted(found))


def place(normal: Mapping[str, Any], kind: Kind) -> str:
    """Where in the example it stands first, for example messages[1].content; empty when only all texts together have
    it."""
    return next((where for where, text in texts(normal) if any(kind.search(part) for part in pieces(text))), "")


def pieces(text: str) -> Iterator[str]:
    """The text, in parts that overlap where it is long: what is at most SHARED characters long lies in one of them."""
    if len(text) <= PIECE:
        yield text
        return
    for start in range(0, len(text) - SHARED, PIECE - SHARED):
        yield text[start : start + PIECE]


def message(kind: Kind) -> str:
    """What is said about it, with what to do. Never what was found."""
    if kind.personal:
        return (
            f"what looks like {kind.words} stands in the example, and a model can learn it by heart and say it to "
            "anyone; replace it by a made-up one, unless it is meant to be known"
        )
    return (
        f"what looks like {kind.words} stands in the example, and a model can learn it by heart and say it to anyone; "
        "remove it, and have a new one issued: this one lies in the data"
    )


def _detects(detector: Any) -> Search:
    return lambda text: any(True for _ in detector.analyze_string(text))


def _begins(prefix: str, rest: str) -> Search:
    compiled = re.compile(rf"(?<![A-Za-z0-9]){prefix}{rest}", re.ASCII)
    return lambda text: compiled.search(text) is not None


def _has_card(text: str) -> bool:
    return any(luhn.is_valid(re.sub(r"\D", "", found[0])) for found in CARD.finditer(text))


def _has_iban(text: str) -> bool:
    return any(iban.is_valid(found[0]) for found in IBAN.finditer(text))


def _has_ssn(text: str) -> bool:
    return any(ssn.is_valid(found[0]) for found in SSN.finditer(text))


def _has_phone(text: str) -> bool:
    """With its country: +44 20 ... . Without one, nearly every long number could be somebody's."""
    return any(True for _ in PhoneNumberMatcher(text, None))


def _has_email(text: str) -> bool:
    return any(NOBODY.search(found[0]) is None for found in EMAIL.finditer(text))
