"""A network that is conditioned on prompts is taught, replayed and saved as any other."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from peft import LoraConfig
from tiny import naive, tiny_network
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from avalanche_magd import DiffusionGenerator, MAGDPlugin, MAGDTraining
from avalanche_magd.diffusion.label_map import NULL_LABEL
from avalanche_magd.diffusion.text import PromptConditioned, encode_prompts
from avalanche_magd.distillation import MAGD, Distillation, LessonBatch, Teacher

PROMPTS = ["", *(f"a digit {number}" for number in range(10))]
WORDS = ["<pad>", "<unk>", "a", "digit", *map(str, range(10))]
CROSS_ATTENTION = {
    "block_out_channels": (8, 8),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}


def tiny_tokenizer(**kwargs: Any) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(dict(zip(WORDS, range(14), strict=True)), "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", **kwargs
    )


def tiny_text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=6,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    return CLIPTextModel(config).eval()


def tiny_unet(**kwargs: Any) -> UNet2DConditionModel:
    shape = {"in_channels": 1, "out_channels": 1, "cross_attention_dim": 8}
    return UNet2DConditionModel(**{**shape, **CROSS_ATTENTION, **kwargs})


def prompted_network(unet: UNet2DConditionModel | None = None) -> PromptConditioned:
    embeddings = encode_prompts(PROMPTS, tiny_tokenizer(model_max_length=6), tiny_text_encoder())
    return PromptConditioned(tiny_unet() if unet is None else unet, embeddings)


def prompted_generator(**kwargs: Any) -> DiffusionGenerator:
    return DiffusionGenerator((1, 8, 8), prompted_network(), num_inference_steps=3, **kwargs)


def add_adapters(unet: UNet2DConditionModel) -> None:
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))


def training_of(generator: DiffusionGenerator, **kwargs: Any) -> MAGDTraining:
    learning = [each for each in generator.parameters() if each.requires_grad]
    arguments = {"train_mb_size": 8, "train_iterations": 3, "seed": 0}
    small = Distillation(pool_size=12, num_inference_steps=3)
    return MAGDTraining(
        model=generator,
        optimizer=torch.optim.AdamW(learning, lr=1e-2),
        **{"distillation": small, **arguments, **kwargs},
    )


def test_each_prompt_is_encoded_as_it_would_be_alone() -> None:
    tokenizer, text_encoder = tiny_tokenizer(model_max_length=6), tiny_text_encoder()
    embeddings = encode_prompts(PROMPTS, tokenizer, text_encoder)
    assert embeddings.shape == (11, 6, 8)
    assert not embeddings.requires_grad
    ids = torch.tensor([[2, 3, 4 + 7, 0, 0, 0]])  # a digit 7, padded
    torch.testing.assert_close(embeddings[8], text_encoder(ids)[0][0].detach())
    short = encode_prompts(["", "a a a a digit"], tokenizer, text_encoder, max_length=3)
    ids = torch.tensor([[2, 2, 2]])
    torch.testing.assert_close(short[1], text_encoder(ids)[0][0].detach())


def test_a_class_is_generated_from_its_prompt() -> None:
    generator = prompted_generator().eval()
    generator.add_classes(range(10))
    unet, embeddings = generator.network.unet, generator.network.embeddings
    x_t, t = torch.randn(3, 1, 8, 8), torch.tensor([3, 500, 900])
    with torch.no_grad():
        asked = generator(x_t, t, torch.tensor([0, 7, NULL_LABEL]))
        expected = unet(x_t, t, encoder_hidden_states=embeddings[[1, 8, 0]]).sample
    torch.testing.assert_close(asked, expected)
    assert generator.generate(2).shape == (2, 1, 8, 8)
    assert generator.get_features(torch.zeros(2, 1, 8, 8)).shape == (2, 8)


def test_sides_that_the_unet_cannot_halve_are_padded() -> None:
    generator = DiffusionGenerator((1, 5, 7), prompted_network(), num_inference_steps=1)
    generator.add_classes([0])
    assert generator.generate(1).shape == (1, 1, 5, 7)


@pytest.mark.parametrize("adapters", [False, True])
def test_the_plugin_replays_from_a_prompted_generator(digits: Any, adapters: bool) -> None:
    generator = prompted_generator()
    if adapters:
        add_adapters(generator.network.unet)
    training = training_of(generator)
    plugin = MAGDPlugin(training)
    strategy = naive([plugin])
    for experience in digits.train_stream[:2]:
        strategy.train(experience)
    seen = {label for exp in digits.train_stream[:2] for label in exp.classes_in_this_experience}
    assert generator.classes == sorted(seen)
    assert plugin.cost.lessons == 12 * 3
    assert plugin.cost.teacher_forwards_per_lesson == 1
    assert generator.generate(4).isfinite().all()


def test_only_adapters_are_taught_averaged_and_checkpointed(digits: Any, tmp_path: Path) -> None:
    generator = prompted_generator()
    add_adapters(generator.network.unet)
    before = {name: each.clone() for name, each in generator.named_parameters()}
    training = training_of(generator, checkpoint_folder=tmp_path)
    training.train(digits.train_stream[0], eval_streams=[])
    adapters = {name: each for name, each in generator.named_parameters() if "lora" in name}
    changed = {
        name for name, each in generator.named_parameters() if not torch.equal(each, before[name])
    }
    assert changed
    assert changed <= set(adapters)
    optimized = training.optimizer.param_groups[0]["params"]
    assert {id(each) for each in optimized} == {id(each) for each in adapters.values()}
    saved = torch.load(tmp_path / "experience-0.pt", weights_only=True)
    sizes = [each.numel() for each in adapters.values()]
    assert sum(sizes) < sum(each.numel() for each in before.values()) / 10
    assert [each.numel() for each in saved["student"]] == sizes
    assert [each.numel() for each in saved["average"]] == sizes


def test_frozen_parameters_of_student_and_teacher_are_the_same(digits: Any) -> None:
    teachers: list[DiffusionGenerator] = []

    def recording(teacher: Teacher, labels: Tensor, lessons_per_image: int) -> LessonBatch:
        teachers.append(teacher.generator)
        return MAGD()(teacher, labels, lessons_per_image)

    generator = prompted_generator()
    add_adapters(generator.network.unet)
    distillation = Distillation(recording, num_inference_steps=2, on_the_fly=True)
    training = training_of(generator, distillation=distillation)
    for experience in digits.train_stream[:2]:
        training.train(experience, eval_streams=[])
    assert len(teachers) == 3
    student = dict(generator.named_parameters())
    for name, parameter in teachers[0].named_parameters():
        assert (parameter is student[name]) == ("lora" not in name)


@pytest.mark.parametrize("adapters", [False, True])
def test_a_saved_generator_needs_neither_text_encoder_nor_adapters(
    digits: Any, tmp_path: Path, adapters: bool
) -> None:
    generator = prompted_generator()
    if adapters:
        add_adapters(generator.network.unet)
    training_of(generator, train_iterations=20).train(digits.train_stream[0], eval_streams=[])
    generator.save_pretrained(tmp_path)
    again = DiffusionGenerator.from_pretrained(tmp_path)
    noise = [torch.Generator().manual_seed(1) for _ in range(3)]
    images = generator.generate(6, rng=noise[0])
    torch.testing.assert_close(again.generate(6, rng=noise[1]), images, atol=1e-3, rtol=1e-3)
    assert {name for name, _ in again.named_parameters() if "lora" in name} == set()
    # The generator that was saved goes on as it was.
    assert torch.equal(generator.generate(6, rng=noise[2]), images)
    assert any("lora" in name for name, _ in generator.named_parameters()) == adapters
    if adapters:
        generator.network.unet.disable_lora()
        without = generator.generate(6, rng=torch.Generator().manual_seed(1))
        assert (without - images).abs().max() > 0.05  # so the adapters are in what was read


def test_a_folder_with_prompts_can_become_one_without(tmp_path: Path) -> None:
    prompted_generator().save_pretrained(tmp_path)
    plain = DiffusionGenerator((1, 8, 8), tiny_network())
    plain.save_pretrained(tmp_path)
    assert isinstance(DiffusionGenerator.from_pretrained(tmp_path).network, UNet2DModel)


def test_a_class_without_a_prompt_is_refused_before_it_is_learnt() -> None:
    generator = prompted_generator()
    generator.add_classes([3])
    with pytest.raises(ValueError, match="no prompt for class 12: the prompts are those of cla"):
        generator.add_classes([4, 12])
    assert generator.classes == [3]


def test_a_class_without_a_prompt_is_refused_before_old_classes_are_generated(digits: Any) -> None:
    generator = prompted_generator()
    generator.network.embeddings = generator.network.embeddings[:9]
    generator.pixel_range.set(torch.zeros(1), torch.ones(1))
    last = max(digits.train_stream, key=lambda each: max(each.classes_in_this_experience))
    generator.add_classes({0, 1} - set(last.classes_in_this_experience))
    training = training_of(generator)
    with pytest.raises(ValueError, match="no prompt for class 9: the prompts are those of clas"):
        training.train(last)
    assert training.cost.forwards == 0
    assert training.pool is None


def test_unets_and_embeddings_that_do_not_fit_are_refused() -> None:
    embeddings = torch.zeros(11, 6, 8)
    with pytest.raises(ValueError, match="embeddings have 8 dimensions, the UNet's cross_atten"):
        PromptConditioned(tiny_unet(cross_attention_dim=16), embeddings)
    with pytest.raises(ValueError, match="must be prompts × tokens × dimensions"):
        PromptConditioned(tiny_unet(), embeddings[0])
    with pytest.raises(ValueError, match="asks for more than a prompt"):
        PromptConditioned(tiny_unet(num_class_embeds=3), embeddings)
    with pytest.raises(TypeError, match="needs a diffusers UNet2DConditionModel, got a UNet2DMod"):
        PromptConditioned(tiny_network(), embeddings)
    with pytest.raises(ValueError, match="Images have 3 channels, the network takes 1"):
        DiffusionGenerator((3, 8, 8), PromptConditioned(tiny_unet(), embeddings))
    with pytest.raises(TypeError, match=r"takes no class labels: wrap it as PromptConditioned"):
        DiffusionGenerator((1, 8, 8), tiny_unet())


def test_prompts_that_cannot_be_encoded_are_refused() -> None:
    with pytest.raises(ValueError, match='The first prompt stands for "no class"'):
        encode_prompts(PROMPTS[1:], tiny_tokenizer(model_max_length=6), tiny_text_encoder())
    with pytest.raises(ValueError, match="knows no model_max_length"):
        encode_prompts(PROMPTS, tiny_tokenizer(), tiny_text_encoder())


def test_a_generator_that_is_all_frozen_is_not_trained(digits: Any) -> None:
    generator = prompted_generator()
    training = training_of(generator)
    generator.network.unet.requires_grad_(False)
    with pytest.raises(ValueError, match=r"parameters are frozen: add adapters"):
        training.train(digits.train_stream[0], eval_streams=[])


@pytest.mark.parametrize("build", [tiny_network, prompted_network])
def test_gradient_checkpointing_gives_the_same_gradients(build: Any) -> None:
    network: nn.Module = build().train()
    if isinstance(network, UNet2DModel):
        network.class_embedding = nn.Embedding(11, network.class_embedding.embedding_dim)
    kept = copy.deepcopy(network)
    network.enable_gradient_checkpointing()
    calls = dict.fromkeys((network, kept), 0)
    x_t, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 900]), torch.tensor([1, 2])
    for each in (network, kept):

        def count(*_: Any, each: nn.Module = each) -> None:
            calls[each] += 1

        each.down_blocks[-1].resnets[0].conv1.register_forward_pre_hook(count)
        output = each(x_t, t, labels)
        getattr(output, "sample", output).square().sum().backward()
    assert (calls[network], calls[kept]) == (2, 1)  # computed again for the backward pass
    for again, once in zip(network.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(again.grad, once.grad)
