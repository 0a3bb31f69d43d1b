"""Access tokens: JSON Web Tokens under the keys of the installation, by the algorithm that is set, whatever they say.

Owns where a token stands in a request, what makes it valid, and minting. What its claims mean is ``claims``. Why a
token was refused is said, what it held never is.
"""

from collections.abc import Mapping
from typing import Any

import jwt
import msgspec
from jwt import exceptions

from events.errors import Misconfigured, TokenExpired, TokenInvalid, TokenMissing
from service.access.claims import Claims, read_claims
from service.access.keys import Keys

LEEWAY_S = 10
"""How far the clocks of who issues and who checks may be apart."""
TOKEN_CHARS_MAX = 8_000
"""Longer text is refused unread; a request line has at most 8,190 characters in all."""


class Verifier(msgspec.Struct, frozen=True):
    """Checks tokens. ``issuer`` and ``audience``: what ``iss`` and ``aud`` must say, None where nobody asks."""

    keys: Keys
    issuer: str | None = None
    audience: str | None = None

    def __call__(self, token: str) -> Claims:
        """Raises: TokenInvalid, TokenExpired."""
        if len(token) > TOKEN_CHARS_MAX:
            raise TokenInvalid(f"the token has more than {TOKEN_CHARS_MAX} characters")
        return read_claims(self._payload(token), leeway_s=LEEWAY_S)

    def _payload(self, token: str) -> Mapping[str, Any]:
        *earlier, last = self.keys.verifying
        for key in earlier:
            try:
                return self._decode(token, key)
            except jwt.InvalidSignatureError:
                continue
        try:
            return self._decode(token, last)
        except jwt.InvalidSignatureError as exc:
            raise TokenInvalid("the token was not signed by a key of this installation") from exc

    def _decode(self, token: str, key: Any) -> Mapping[str, Any]:
        """Raises: TokenInvalid, TokenExpired, jwt.InvalidSignatureError."""
        try:
            payload: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[self.keys.algorithm],
                issuer=self.issuer,
                audience=self.audience,
                leeway=LEEWAY_S,
                options={"require": ["exp"]},
            )
        except jwt.InvalidSignatureError:
            raise
        except jwt.ExpiredSignatureError as exc:
            raise TokenExpired("the token has expired") from exc
        except jwt.PyJWTError as exc:
            raise TokenInvalid(_WHY.get(type(exc), "the token cannot be read as a JSON Web Token")) from exc
        except (ValueError, TypeError, ArithmeticError, RecursionError) as exc:
            # Surprising because the library lets these through: lone surrogates, an infinite exp, deep nesting.
            raise TokenInvalid("the token cannot be read as a JSON Web Token") from exc
        return payload


_WHY: dict[type[jwt.PyJWTError], str] = {
    jwt.InvalidAlgorithmError: "the token is signed by another algorithm than HUBLOG_JWT_ALGORITHM",
    jwt.MissingRequiredClaimError: "a claim is missing: `exp`, or the `iss` or `aud` that is asked for here",
    jwt.InvalidIssuerError: "the claim `iss` is not HUBLOG_JWT_ISSUER",
    jwt.InvalidAudienceError: "the claim `aud` is not HUBLOG_JWT_AUDIENCE",
    jwt.ImmatureSignatureError: "the token is not valid yet: see its claims `nbf` and `iat`",
    jwt.InvalidIssuedAtError: "the claim `iat` is not a number",
    exceptions.InvalidSubjectError: "the claim `sub` is not a text",
    exceptions.InvalidJTIError: "the claim `jti` is not a text",
}


def mint(keys: Keys, payload: Mapping[str, Any], *, issuer: str | None, audience: str | None) -> str:
    """A token that a ``Verifier`` of the same settings takes. Raises: Misconfigured: there is no key to sign with."""
    if keys.signing is None:
        raise Misconfigured("the keys of HUBLOG_JWT_KEY are public ones: mint where the private key is")
    whole = dict(payload)
    if issuer is not None:
        whole["iss"] = issuer
    if audience is not None:
        whole["aud"] = audience
    return jwt.encode(whole, keys.signing, algorithm=keys.algorithm)


def token_of(authorization: str | None, access_token: str | None) -> str:
    """The token of a request: of its ``Authorization`` header, else of ``?access_token=``.

    A header of another scheme is a proxy's, which browsers repeat at every request to it.

    Raises: TokenMissing, TokenInvalid.
    """
    scheme, _, token = (authorization or "").strip().partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    if access_token:
        return access_token
    if authorization is None:
        raise TokenMissing("there is no access token")
    raise TokenInvalid("the Authorization header is not `Bearer` and a token")
