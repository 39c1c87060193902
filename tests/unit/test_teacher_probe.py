"""Whether a teacher sees: pairs of pictures with one question and two right answers."""

from contextlib import ExitStack

import pytest
from tests.faulty_endpoint import FaultyEndpoint

from prism_cli.assembly.endpoint import world_app
from prism_cli.assembly.response import grammar_of
from prism_cli.assembly.teacher import TeacherQuestions, open_teacher, probe_pairs, resolve_live, resolve_teacher
from prism_cli.data.rows import dataset, row
from prism_cli.errors import DataError, TeacherError
from prism_cli.recipes.identity import differences
from prism_cli.recipes.load import load_recipe
from prism_cli.recipes.sections import FileData, MixtureData, ResponseSection, WorldData
from prism_cli.recipes.teachers import EmbeddedTeacher, OpenAITeacher
from prism_cli.responses import ResponseSettings
from prism_cli.runs.folder import open_run
from prism_cli.stages import teacher_check
from prism_cli.teacher.probe import is_right, pairs_seen
from prism_cli.teacher.probe_pairs import number_pairs
from prism_cli.teacher.server import ServedEndpoint, create_app
from prism_cli.worlds import world

GRAMMAR = grammar_of(ResponseSection())
LOOKING = ("exact", "weak_perception", "weak_reasoning")
WORLD = WorldData(type="world", size=3)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder):
    return open_run(folder / "run", "align", {}, "", differences)


@pytest.fixture(scope="module")
def rows():
    example = world("shapes").examples("train", 1, 0)[0]
    return dataset([row("a", example.question, [example.image], caption=example.caption)])


def opened(section, run, rows, data=None):
    return open_teacher(resolve_teacher(section), run, TeacherQuestions((rows,), ResponseSettings(GRAMMAR, None), data))


def reader(knows):
    """An app that reads the probes' numbers, `knows` of the six, and writes plain sentences."""
    numbers = {image: text for pair in number_pairs() for image, text in zip(pair.images, pair.answers, strict=True)}
    seen = dict(list(numbers.items())[:knows])
    return create_app(lambda request: [f"The number is {seen.get(request.images[0], 'hidden')}."], model="reader")


def test_the_pairs_of_a_world_have_two_right_answers_and_are_the_same_every_time():
    place = world("shapes")
    pairs = place.probe()
    assert len(pairs) == 3
    for pair, again in zip(pairs, place.probe(), strict=True):
        assert pair.answers[0] != pair.answers[1]
        assert (pair.question, pair.answers) == (again.question, again.answers)
        for image, answer in zip(pair.images, pair.answers, strict=True):
            assert place.oracle(pair.question, image)["answer"] == answer


@pytest.mark.parametrize("variant", LOOKING)
def test_every_variant_that_looks_passes(variant):
    checkup = teacher_check.run("align", load_recipe("align", "tiny", [f"teacher.variant={variant}"]))
    assert checkup.passed
    assert (checkup.result.asked, checkup.result.well_formed, checkup.result.failed) == (6, 6, ())


def test_a_blind_teacher_fails_and_passes_by_captions():
    blind = ["teacher.variant=text_only"]
    checkup = teacher_check.run("align", load_recipe("align", "tiny", blind))
    assert (checkup.passed, checkup.result.seen, checkup.result.well_formed) == (False, 0, 6)
    assert teacher_check.run("align", load_recipe("align", "tiny", [*blind, "teacher.modality=text"])).passed


def test_one_pair_read_on_both_sides_is_proof_and_half_pairs_are_none():
    for knows, seen in ((1, 0), (2, 1), (6, 3)):
        with ServedEndpoint(reader(knows)) as served:
            section = {"teacher.endpoint": served.url, "teacher.model": "reader"}
            recipe = load_recipe("align", None, ["data.path=x.jsonl", f"teacher.name=reads{knows}"], section)
            checkup = teacher_check.run("align", recipe)
        assert (checkup.result.seen, checkup.passed) == (seen, seen > 0)
        assert checkup.result.well_formed == 0, "plain sentences are seen through, but told"


def test_a_check_measures_now_whatever_is_kept():
    with ServedEndpoint(reader(0)) as served:
        section = {"teacher.endpoint": served.url, "teacher.model": "reader"}
        recipe = load_recipe("align", None, ["data.path=x.jsonl"], section)
        assert not teacher_check.run("align", recipe).passed
    for knows in (6, 0):
        with ServedEndpoint(reader(knows)) as served:
            section = {"teacher.endpoint": served.url, "teacher.model": "reader"}
            recipe = load_recipe("align", None, ["data.path=x.jsonl"], section)
            assert teacher_check.run("align", recipe).result.seen == knows / 2


def test_a_check_names_the_section_of_a_teacher_that_serves_no_single_model():
    with FaultyEndpoint() as endpoint:
        endpoint.models = ["m", "n"]
        recipe = load_recipe("align", None, ["data.path=x.jsonl"], {"teacher.endpoint": endpoint.url})
        with pytest.raises(TeacherError, match=r"^teacher: .* serves 2 models") as caught:
            teacher_check.run("align", recipe)
    assert caught.value.hint == "name one in teacher.model"


class Switch:
    """A teacher that can be given eyes, and counts what it is asked."""

    def __init__(self):
        self.asked, self.knows = 0, 0
        self.server = ServedEndpoint(create_app(self.answer, "m"))

    def answer(self, request):
        self.asked += 1
        numbers = {image: text for pair in number_pairs() for image, text in zip(*pair[1:3], strict=True)}
        return [f"The number is {dict(list(numbers.items())[: self.knows]).get(request.images[0], 'hidden')}."]


def test_a_teacher_given_eyes_is_looked_at_again_and_one_that_passed_is_not(run, rows):
    teacher = Switch()
    with teacher.server as served:
        section = OpenAITeacher(endpoint=served.url, model="m", store=str(run.folder / "a.sqlite"))
        for knows, asked in ((0, 6), (0, 12), (6, 18), (6, 18), (0, 18)):
            teacher.knows = knows
            with ExitStack() as stack:
                if asked < 18:
                    stack.enter_context(pytest.raises(TeacherError, match="does not see the pictures"))
                with opened(section, run, rows):
                    pass
            assert teacher.asked == asked


def test_pairs_come_from_the_world_of_the_rows_or_of_the_teacher():
    live, embedded = OpenAITeacher(endpoint="http://h/v1"), EmbeddedTeacher(type="embedded")
    file = FileData(path="a.jsonl")
    mixture = MixtureData.model_validate(
        {
            "type": "mixture",
            "sources": {"a": {"path": "a.jsonl", "weight": 1}, "b": {**WORLD.model_dump(), "weight": 1}},
        }
    )
    asked = {"numbers": number_pairs()[0].question, "shapes": world("shapes").probe()[0].question}
    for section, data, expected in (
        (live, file, "numbers"),
        (live, WORLD, "shapes"),
        (live, mixture, "shapes"),
        (embedded, file, "shapes"),
    ):
        assert probe_pairs(resolve_live(section), data)[0].question == asked[expected]


def test_a_pair_counts_when_both_sides_are_right():
    assert pairs_seen([True, True, True, False, False, False]) == 1


@pytest.mark.parametrize(
    ("text", "right"),
    [("417", True), ("The number is 417.", True), ("417 or 832", False), ("4170", False), ("hidden", False)],
)
def test_a_sentence_is_right_if_it_names_this_picture_and_not_the_other(text, right):
    assert is_right(text, "417", "832", lambda text, expected: text == expected) == right


# Stages --------------------------------------------------------------------------------------------------------------


def test_a_blind_teacher_is_refused_before_the_first_question_with_the_cure(run, rows):
    section = EmbeddedTeacher(type="embedded", variant="text_only")
    with (
        pytest.raises(TeacherError, match="does not see the pictures") as caught,
        opened(section, run, rows),
    ):
        pytest.fail("the stage went on")
    assert "teacher.modality=text" in caught.value.hint
    assert "teacher.check=false" in caught.value.hint


def test_a_teacher_that_answers_no_probe_is_not_called_blind(run, rows):
    def answer(request):
        raise DataError("nothing of mine")

    with ServedEndpoint(create_app(answer, "m")) as served:
        section = OpenAITeacher(endpoint=served.url, model="m", store=str(run.folder / "a.sqlite"))
        with (
            pytest.raises(TeacherError, match=r"none of 6 probes \(rejected\), so whether it sees is not") as caught,
            opened(section, run, rows),
        ):
            pytest.fail("the stage went on")
    assert "teacher.check=false" in caught.value.hint


@pytest.mark.parametrize("settings", [{"check": False}, {"modality": "text"}])
def test_who_is_not_to_see_or_not_to_be_checked_is_not_probed(run, rows, settings):
    section = EmbeddedTeacher(type="embedded", variant="text_only", **settings)
    with opened(section, run, rows) as teacher:
        assert len(teacher.answers([{"id": "a"}])) == 1
        assert teacher.taught == (("reasoning",) if settings.get("modality") else ("perception", "reasoning"))


def test_rows_without_pictures_need_no_eyes(run):
    app = create_app(lambda request: [GRAMMAR.render(dict.fromkeys(GRAMMAR.tags, "x"))], model="m")
    with ServedEndpoint(app) as served:
        section = OpenAITeacher(endpoint=served.url, model="m", store=str(run.folder / "a.sqlite"))
        with opened(section, run, dataset([row("a", "q", [])])) as teacher:
            assert teacher.answers([{"id": "a"}]) == [GRAMMAR.render(dict.fromkeys(GRAMMAR.tags, "x"))]


def test_a_seeing_teacher_of_a_world_passes_through_any_endpoint(run, rows):
    with ServedEndpoint(world_app("shapes", "weak_perception", GRAMMAR)) as served:
        section = OpenAITeacher(endpoint=served.url, store=str(run.folder / "a.sqlite"))
        with opened(section, run, rows, WORLD) as teacher:
            assert GRAMMAR.parse(teacher.answers([{"id": "a"}])[0]).well_formed
