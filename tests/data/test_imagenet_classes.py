"""The list of ImageNet's classes that comes with the package."""

from modeling_mmt.data.imagenet_classes import read_classes


def test_the_list_of_classes_is_imagenets():
    classes = read_classes()
    assert len({of.synset for of in classes}) == 1000
    assert [of.synset for of in classes] == sorted(of.synset for of in classes)  # ImageNet's order
    related = {concept for of in classes for concept in of.related}
    assert {"dog", "banana", "rooster", "elephant"} <= related
    by_name = {of.names[0]: of for of in classes}
    assert by_name["beagle"].related == ("dog",) and by_name["cock"].related == ("rooster",)
    assert by_name["zebra"].related == () and "equine" in by_name["zebra"].above
    assert by_name["zebra"].gloss == "any of several fleet black-and-white striped African equines"
