from moe_asr.decoding.prefix_tree import PrefixTree


def test_a_prefix_keeps_its_number_and_its_tokens():
    tree = PrefixTree()
    a = tree.child(tree.ROOT, 7)
    ab, ac = tree.child(a, 8), tree.child(a, 9)
    assert len({tree.ROOT, a, ab, ac}) == 4
    assert tree.child(a, 8) == ab and tree.child(tree.ROOT, 7) == a
    assert [tree.tokens(n) for n in (tree.ROOT, a, ab, ac)] == [(), (7,), (7, 8), (7, 9)]
