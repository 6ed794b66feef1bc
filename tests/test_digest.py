"""The digest chain against values worked out by hand from docs/arithmetic.md, rule 8."""

import hashlib

from detinfer.digest import DigestChain


def test_empty_chain_is_the_hash_of_its_name():
    assert DigestChain().hexdigest() == (
        "88fa548ec0210c8113f9ceb0b08936d1f9825b29009396fd97da41dc046a454a"
    )


def test_known_chain():
    chain = DigestChain()
    chain.update(5, (0x0123456789ABCDEF, 0xFEDCBA9876543210))
    chain.update(49151, (0, 2**64 - 1))
    first = hashlib.sha256(
        hashlib.sha256(b"detinfer-digest-1").digest()
        + bytes.fromhex("05000000" + "efcdab8967452301" + "1032547698badcfe")
    ).digest()
    second = hashlib.sha256(first + bytes.fromhex("ffbf0000" + "00" * 8 + "ff" * 8))
    assert chain.hexdigest() == second.hexdigest()


def test_order_token_and_each_sum_matter():
    def digest(*links):
        chain = DigestChain()
        for token, *sums in links:
            chain.update(token, tuple(sums))
        return chain.hexdigest()

    variants = [
        digest((1, 2, 3), (4, 5, 6)),
        digest((4, 5, 6), (1, 2, 3)),
        digest((1, 2, 3), (4, 5, 7)),
        digest((1, 2, 3), (4, 6, 5)),
        digest((1, 2, 3), (0, 5, 6)),
        digest((1, 2, 3)),
    ]
    assert len(set(variants)) == len(variants)
