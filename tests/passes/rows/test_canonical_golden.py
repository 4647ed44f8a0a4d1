"""Every spelling of a low-rank layer, before and after: what was done, and the graph, to be read.

``EXPECTTEST_ACCEPT=1 pytest tests/passes/rows/test_canonical_golden.py`` writes new answers.
"""

from __future__ import annotations

from expecttest import TestCase

from memcompile.passes.rows.canonical import canonicalise
from tests.passes.rows.test_canonical import graph_of, line_of
from tests.passes.schedule.test_golden import lines_of


class TestSpellings(TestCase):
    maxDiff = None

    def check(self, name: str, expected: str, train: bool = False) -> None:
        module = graph_of(name, train)
        done = list(map(line_of, canonicalise(module)))
        self.assertExpectedInline("\n".join((*done, lines_of(module.graph))), expected, skip=1)

    def test_lora_before(self) -> None:
        self.assertExpectedInline(
            lines_of(graph_of("LoRA").graph),
            """\
arg0_1: [48, 16]
arg1_1: [48]
arg2_1: [2, 32, 16]
arg3_1: [4, 16]
arg4_1: [48, 4]
view: [64, 16] = view.default(arg2_1, [64, 16])
permute: [16, 48] = permute.default(arg0_1, [1, 0])
addmm: [64, 48] = addmm.default(arg1_1, view, permute)
view_1: [2, 32, 48] = view.default(addmm, [2, 32, 48])
permute_1: [16, 4] = permute.default(arg3_1, [1, 0])
view_2: [64, 16] = view.default(arg2_1, [64, 16])
mm: [64, 4] = mm.default(view_2, permute_1)
permute_2: [4, 48] = permute.default(arg4_1, [1, 0])
mm_1: [64, 48] = mm.default(mm, permute_2)
view_5: [2, 32, 48] = view.default(mm_1, [2, 32, 48])
mul: [2, 32, 48] = mul.Tensor(view_5, 4.0)
add: [2, 32, 48] = add.Tensor(view_1, mul)
return add""",
        )

    def test_lora(self) -> None:
        self.check(
            "LoRA",
            """\
# scale mul, 12288 bytes: scales mm in place of mm_1
# accumulate add, 12288 bytes: adds mm_default to addmm in place
arg0_1: [48, 16]
arg1_1: [48]
arg2_1: [2, 32, 16]
arg3_1: [4, 16]
arg4_1: [48, 4]
view: [64, 16] = view.default(arg2_1, [64, 16])
permute: [16, 48] = permute.default(arg0_1, [1, 0])
addmm: [64, 48] = addmm.default(arg1_1, view, permute)
permute_1: [16, 4] = permute.default(arg3_1, [1, 0])
mm: [64, 4] = mm.default(view, permute_1)
permute_2: [4, 48] = permute.default(arg4_1, [1, 0])
mul_tensor: [64, 4] = mul.Tensor(mm, 4.0)
mm_add_default: [64, 48] = mm_add.default(addmm, mul_tensor, permute_2)
view_default_1: [2, 32, 48] = view.default(mm_add_default, [2, 32, 48])
return view_default_1""",
        )

    def test_lora_joint_before(self) -> None:
        self.assertExpectedInline(
            lines_of(graph_of("LoRA", train=True).graph),
            """\
primals_1: [48, 16]
primals_2: [48]
primals_3: [2, 32, 16]
primals_4: [4, 16]
primals_5: [48, 4]
tangents_1: [2, 32, 48]
view: [64, 16] = view.default(primals_3, [64, 16])
permute: [16, 48] = permute.default(primals_1, [1, 0])
addmm: [64, 48] = addmm.default(primals_2, view, permute)
view_1: [2, 32, 48] = view.default(addmm, [2, 32, 48])
permute_1: [16, 4] = permute.default(primals_4, [1, 0])
view_2: [64, 16] = view.default(primals_3, [64, 16])
mm: [64, 4] = mm.default(view_2, permute_1)
permute_2: [4, 48] = permute.default(primals_5, [1, 0])
mm_1: [64, 48] = mm.default(mm, permute_2)
view_5: [2, 32, 48] = view.default(mm_1, [2, 32, 48])
mul: [2, 32, 48] = mul.Tensor(view_5, 4.0)
add: [2, 32, 48] = add.Tensor(view_1, mul)
mul_1: [2, 32, 48] = mul.Tensor(tangents_1, 4.0)
view_6: [64, 48] = view.default(mul_1, [64, 48])
permute_3: [48, 64] = permute.default(view_6, [1, 0])
mm_2: [48, 4] = mm.default(permute_3, mm)
permute_5: [48, 4] = permute.default(permute_2, [1, 0])
mm_3: [64, 4] = mm.default(view_6, permute_5)
permute_7: [4, 64] = permute.default(mm_3, [1, 0])
mm_4: [4, 16] = mm.default(permute_7, view_2)
permute_9: [4, 16] = permute.default(permute_1, [1, 0])
mm_5: [64, 16] = mm.default(mm_3, permute_9)
view_9: [2, 32, 16] = view.default(mm_5, [2, 32, 16])
view_10: [64, 48] = view.default(tangents_1, [64, 48])
permute_11: [48, 16] = permute.default(permute, [1, 0])
mm_6: [64, 16] = mm.default(view_10, permute_11)
view_11: [2, 32, 16] = view.default(mm_6, [2, 32, 16])
add_1: [2, 32, 16] = add.Tensor(view_9, view_11)
return add, None, None, add_1, mm_4, mm_2""",
        )

    def test_lora_joint(self) -> None:
        self.check(
            "LoRA",
            """\
# scale mul, 12288 bytes: scales mm in place of mm_1
# scale mul_1, 12288 bytes: 2 products read tangents_1 unscaled
# accumulate add, 12288 bytes: adds mm_default to addmm in place
# accumulate add_1, 4096 bytes: adds mm_5 to mm_6 in place
primals_1: [48, 16]
primals_2: [48]
primals_3: [2, 32, 16]
primals_4: [4, 16]
primals_5: [48, 4]
tangents_1: [2, 32, 48]
view: [64, 16] = view.default(primals_3, [64, 16])
permute: [16, 48] = permute.default(primals_1, [1, 0])
addmm: [64, 48] = addmm.default(primals_2, view, permute)
permute_1: [16, 4] = permute.default(primals_4, [1, 0])
mm: [64, 4] = mm.default(view, permute_1)
permute_2: [4, 48] = permute.default(primals_5, [1, 0])
mul_tensor: [64, 4] = mul.Tensor(mm, 4.0)
mm_add_default: [64, 48] = mm_add.default(addmm, mul_tensor, permute_2)
view_default_3: [2, 32, 48] = view.default(mm_add_default, [2, 32, 48])
view_default_2: [64, 48] = view.default(tangents_1, [64, 48])
permute_default: [48, 64] = permute.default(view_default_2, [1, 0])
mm_default_2: [48, 4] = mm.default(permute_default, mul_tensor)
mm_default_1: [64, 4] = mm.default(view_default_2, primals_5)
mul_tensor_1: [64, 4] = mul.Tensor(mm_default_1, 4.0)
permute_7: [4, 64] = permute.default(mul_tensor_1, [1, 0])
mm_4: [4, 16] = mm.default(permute_7, view)
mm_6: [64, 16] = mm.default(view_default_2, primals_1)
mm_add_default_1: [64, 16] = mm_add.default(mm_6, mul_tensor_1, primals_4)
view_default_4: [2, 32, 16] = view.default(mm_add_default_1, [2, 32, 16])
return view_default_3, None, None, view_default_4, mm_4, mm_default_2""",
            train=True,
        )

    def test_two_adapters_joint(self) -> None:
        self.check(
            "LoRATwice",
            """\
# scale mul, 12288 bytes: scales mm in place of mm_1
# scale mul_1, 12288 bytes: scales mm_2 in place of mm_3
# scale mul_2, 12288 bytes: 2 products read tangents_1 unscaled
# scale mul_3, 12288 bytes: 2 products read tangents_1 unscaled
# accumulate add, 12288 bytes: adds mm_default to addmm in place
# accumulate add_1, 12288 bytes: adds mm_default_1 to mm_add_default in place
# accumulate add_2, 4096 bytes: adds mm_11 to mm_7 in place
# accumulate add_3, 4096 bytes: adds mm_12 to mm_add_default_2 in place
primals_1: [48, 16]
primals_2: [48]
primals_3: [2, 32, 16]
primals_4: [4, 16]
primals_5: [48, 4]
primals_6: [4, 16]
primals_7: [48, 4]
tangents_1: [2, 32, 48]
view: [64, 16] = view.default(primals_3, [64, 16])
permute: [16, 48] = permute.default(primals_1, [1, 0])
addmm: [64, 48] = addmm.default(primals_2, view, permute)
permute_1: [16, 4] = permute.default(primals_4, [1, 0])
mm: [64, 4] = mm.default(view, permute_1)
permute_2: [4, 48] = permute.default(primals_5, [1, 0])
mul_tensor: [64, 4] = mul.Tensor(mm, 4.0)
mm_add_default: [64, 48] = mm_add.default(addmm, mul_tensor, permute_2)
permute_3: [16, 4] = permute.default(primals_6, [1, 0])
mm_2: [64, 4] = mm.default(view, permute_3)
permute_4: [4, 48] = permute.default(primals_7, [1, 0])
mul_tensor_1: [64, 4] = mul.Tensor(mm_2, 4.0)
mm_add_default_1: [64, 48] = mm_add.default(mm_add_default, mul_tensor_1, permute_4)
view_default_7: [2, 32, 48] = view.default(mm_add_default_1, [2, 32, 48])
view_default_3: [64, 48] = view.default(tangents_1, [64, 48])
permute_default: [48, 64] = permute.default(view_default_3, [1, 0])
mm_default_3: [48, 4] = mm.default(permute_default, mul_tensor_1)
mm_default_2: [64, 4] = mm.default(view_default_3, primals_7)
mul_tensor_2: [64, 4] = mul.Tensor(mm_default_2, 4.0)
permute_9: [4, 64] = permute.default(mul_tensor_2, [1, 0])
mm_6: [4, 16] = mm.default(permute_9, view)
mm_7: [64, 16] = mm.default(mul_tensor_2, primals_6)
mm_default_5: [48, 4] = mm.default(permute_default, mul_tensor)
mm_default_4: [64, 4] = mm.default(view_default_3, primals_5)
mul_tensor_3: [64, 4] = mul.Tensor(mm_default_4, 4.0)
permute_17: [4, 64] = permute.default(mul_tensor_3, [1, 0])
mm_10: [4, 16] = mm.default(permute_17, view)
mm_add_default_2: [64, 16] = mm_add.default(mm_7, mul_tensor_3, primals_4)
mm_add_default_3: [64, 16] = mm_add.default(mm_add_default_2, view_default_3, primals_1)
view_default_9: [2, 32, 16] = view.default(mm_add_default_3, [2, 32, 16])
return view_default_7, None, None, view_default_9, mm_10, mm_default_5, mm_6, mm_default_3""",
            train=True,
        )

    def test_dropout_joint(self) -> None:
        self.check(
            "LoRADropout",
            """\
# scale mul_2, 12288 bytes: scales mm in place of mm_1
# scale mul_3, 12288 bytes: 2 products read tangents_1 unscaled
# accumulate add, 12288 bytes: adds mm_default to addmm in place
# accumulate add_1, 4096 bytes: adds mm_6 to mul_5 in place
primals_1: [48, 16]
primals_2: [48]
primals_3: [2, 32, 16]
primals_4: [4, 16]
primals_5: [48, 4]
tangents_1: [2, 32, 48]
view: [64, 16] = view.default(primals_3, [64, 16])
permute: [16, 48] = permute.default(primals_1, [1, 0])
addmm: [64, 48] = addmm.default(primals_2, view, permute)
inductor_seeds_default: [1] = inductor_seeds.default(1, cpu)
inductor_lookup_seed_default: [] = inductor_lookup_seed.default(inductor_seeds_default, 0)
inductor_random_default: [2, 32, 16] = inductor_random.default([2, 32, 16], inductor_lookup_seed_default, rand)
gt: [2, 32, 16] = gt.Scalar(inductor_random_default, 0.1)
mul: [2, 32, 16] = mul.Tensor(gt, primals_3)
mul_1: [2, 32, 16] = mul.Tensor(mul, 1.1111111111111112)
permute_1: [16, 4] = permute.default(primals_4, [1, 0])
view_2: [64, 16] = view.default(mul_1, [64, 16])
mm: [64, 4] = mm.default(view_2, permute_1)
permute_2: [4, 48] = permute.default(primals_5, [1, 0])
mul_tensor: [64, 4] = mul.Tensor(mm, 4.0)
mm_add_default: [64, 48] = mm_add.default(addmm, mul_tensor, permute_2)
view_default_3: [2, 32, 48] = view.default(mm_add_default, [2, 32, 48])
view_default_2: [64, 48] = view.default(tangents_1, [64, 48])
permute_default: [48, 64] = permute.default(view_default_2, [1, 0])
mm_default_2: [48, 4] = mm.default(permute_default, mul_tensor)
mm_default_1: [64, 4] = mm.default(view_default_2, primals_5)
mul_tensor_1: [64, 4] = mul.Tensor(mm_default_1, 4.0)
permute_7: [4, 64] = permute.default(mul_tensor_1, [1, 0])
mm_4: [4, 16] = mm.default(permute_7, view_2)
mm_5: [64, 16] = mm.default(mul_tensor_1, primals_4)
view_9: [2, 32, 16] = view.default(mm_5, [2, 32, 16])
convert_element_type: [2, 32, 16] = convert_element_type.default(gt, torch.float32)
mul_4: [2, 32, 16] = mul.Tensor(convert_element_type, 1.1111111111111112)
mul_5: [2, 32, 16] = mul.Tensor(view_9, mul_4)
view_default_4: [64, 16] = view.default(mul_5, [64, 16])
mm_add_default_1: [64, 16] = mm_add.default(view_default_4, view_default_2, primals_1)
view_default_5: [2, 32, 16] = view.default(mm_add_default_1, [2, 32, 16])
return view_default_3, None, None, view_default_5, mm_4, mm_default_2""",
            train=True,
        )

    def test_learned_scale_joint(self) -> None:
        self.check(
            "LoRALearnedScale",
            """\
# scale mul refused: mm_1 is read unscaled, too
# scale mul_2, 12288 bytes: 2 products read tangents_1 unscaled
# accumulate add_1, 4096 bytes: adds mm_5 to mm_6 in place
primals_1: [48, 16]
primals_2: [48]
primals_3: [2, 32, 16]
primals_4: [4, 16]
primals_5: [48, 4]
primals_6: []
tangents_1: [2, 32, 48]
view: [64, 16] = view.default(primals_3, [64, 16])
permute: [16, 48] = permute.default(primals_1, [1, 0])
addmm: [64, 48] = addmm.default(primals_2, view, permute)
view_1: [2, 32, 48] = view.default(addmm, [2, 32, 48])
permute_1: [16, 4] = permute.default(primals_4, [1, 0])
mm: [64, 4] = mm.default(view, permute_1)
permute_2: [4, 48] = permute.default(primals_5, [1, 0])
mm_1: [64, 48] = mm.default(mm, permute_2)
view_5: [2, 32, 48] = view.default(mm_1, [2, 32, 48])
mul: [2, 32, 48] = mul.Tensor(view_5, primals_6)
add: [2, 32, 48] = add.Tensor(view_1, mul)
mul_1: [2, 32, 48] = mul.Tensor(tangents_1, view_5)
sum_1: [] = sum.default(mul_1)
view_default_1: [64, 48] = view.default(tangents_1, [64, 48])
permute_default: [48, 64] = permute.default(view_default_1, [1, 0])
mm_default_1: [48, 4] = mm.default(permute_default, mm)
mul_tensor_1: [48, 4] = mul.Tensor(mm_default_1, primals_6)
mm_default: [64, 4] = mm.default(view_default_1, primals_5)
mul_tensor: [64, 4] = mul.Tensor(mm_default, primals_6)
permute_7: [4, 64] = permute.default(mul_tensor, [1, 0])
mm_4: [4, 16] = mm.default(permute_7, view)
mm_6: [64, 16] = mm.default(view_default_1, primals_1)
mm_add_default: [64, 16] = mm_add.default(mm_6, mul_tensor, primals_4)
view_default_2: [2, 32, 16] = view.default(mm_add_default, [2, 32, 16])
return add, None, None, view_default_2, mm_4, mul_tensor_1, sum_1""",
            train=True,
        )

    def test_copy(self) -> None:
        self.check(
            "LoRADropout",
            """\
# scale mul, 12288 bytes: scales mm in place of mm_1
# accumulate add, 12288 bytes: adds mm_default to addmm in place
arg0_1: [48, 16]
arg1_1: [48]
arg2_1: [2, 32, 16]
arg3_1: [4, 16]
arg4_1: [48, 4]
view: [64, 16] = view.default(arg2_1, [64, 16])
permute: [16, 48] = permute.default(arg0_1, [1, 0])
addmm: [64, 48] = addmm.default(arg1_1, view, permute)
permute_1: [16, 4] = permute.default(arg3_1, [1, 0])
mm: [64, 4] = mm.default(view, permute_1)
permute_2: [4, 48] = permute.default(arg4_1, [1, 0])
mul_tensor: [64, 4] = mul.Tensor(mm, 4.0)
mm_add_default: [64, 48] = mm_add.default(addmm, mul_tensor, permute_2)
view_default_1: [2, 32, 48] = view.default(mm_add_default, [2, 32, 48])
return view_default_1""",
        )

    def test_linear_pair(self) -> None:
        self.check(
            "LinearPairBias",
            """\
arg0_1: [4, 16]
arg1_1: [2, 32, 16]
arg2_1: [48, 4]
arg3_1: [48]
permute: [16, 4] = permute.default(arg0_1, [1, 0])
view: [64, 16] = view.default(arg1_1, [64, 16])
mm: [64, 4] = mm.default(view, permute)
permute_1: [4, 48] = permute.default(arg2_1, [1, 0])
addmm: [64, 48] = addmm.default(arg3_1, mm, permute_1)
view_3: [2, 32, 48] = view.default(addmm, [2, 32, 48])
return view_3""",
        )

    def test_factors(self) -> None:
        self.check(
            "Factors",
            """\
arg0_1: [16, 4]
arg1_1: [2, 32, 16]
arg2_1: [4, 48]
arg3_1: [48]
view: [64, 16] = view.default(arg1_1, [64, 16])
mm: [64, 4] = mm.default(view, arg0_1)
mm_1: [64, 48] = mm.default(mm, arg2_1)
view_3: [2, 32, 48] = view.default(mm_1, [2, 32, 48])
add: [2, 32, 48] = add.Tensor(view_3, arg3_1)
return add""",
        )

    def test_singular_values(self) -> None:
        self.check(
            "SingularValues",
            """\
arg0_1: [16, 4]
arg1_1: [2, 32, 16]
arg2_1: [4]
arg3_1: [4, 48]
view: [64, 16] = view.default(arg1_1, [64, 16])
mm: [64, 4] = mm.default(view, arg0_1)
view_1: [2, 32, 4] = view.default(mm, [2, 32, 4])
mul: [2, 32, 4] = mul.Tensor(view_1, arg2_1)
view_2: [64, 4] = view.default(mul, [64, 4])
mm_1: [64, 48] = mm.default(view_2, arg3_1)
view_3: [2, 32, 48] = view.default(mm_1, [2, 32, 48])
return view_3""",
        )

    def test_materialised(self) -> None:
        self.check(
            "Materialised",
            """\
# reassociate mm_1, 3072 bytes: multiplies by the factors of mm one by one
arg0_1: [16, 4]
arg1_1: [4, 48]
arg2_1: [2, 32, 16]
view: [64, 16] = view.default(arg2_1, [64, 16])
mm_default: [64, 4] = mm.default(view, arg0_1)
mm_default_1: [64, 48] = mm.default(mm_default, arg1_1)
view_1: [2, 32, 48] = view.default(mm_default_1, [2, 32, 48])
return view_1""",
        )

    def test_materialised_linear(self) -> None:
        self.check(
            "MaterialisedLinear",
            """\
# reassociate addmm, 3072 bytes: multiplies by the factors of mm one by one
arg0_1: [4, 48]
arg1_1: [16, 4]
arg2_1: [48]
arg3_1: [2, 32, 16]
view: [64, 16] = view.default(arg3_1, [64, 16])
mm_default: [64, 4] = mm.default(view, arg1_1)
addmm_default: [64, 48] = addmm.default(arg2_1, mm_default, arg0_1)
view_1: [2, 32, 48] = view.default(addmm_default, [2, 32, 48])
return view_1""",
        )

    def test_materialised_joint(self) -> None:
        self.check(
            "Materialised",
            """\
# reassociate mm_1 refused: mm, the product of the factors, is used elsewhere
# reassociate mm_3 refused: mm, the product of the factors, is used elsewhere
# reassociate mm_4 refused: mm_2, the product of the factors, is used elsewhere
# reassociate mm_5 refused: mm_2, the product of the factors, is used elsewhere
primals_1: [16, 4]
primals_2: [4, 48]
primals_3: [2, 32, 16]
tangents_1: [2, 32, 48]
mm: [16, 48] = mm.default(primals_1, primals_2)
view: [64, 16] = view.default(primals_3, [64, 16])
mm_1: [64, 48] = mm.default(view, mm)
view_1: [2, 32, 48] = view.default(mm_1, [2, 32, 48])
view_2: [64, 48] = view.default(tangents_1, [64, 48])
permute: [16, 64] = permute.default(view, [1, 0])
mm_2: [16, 48] = mm.default(permute, view_2)
permute_1: [48, 16] = permute.default(mm, [1, 0])
mm_3: [64, 16] = mm.default(view_2, permute_1)
view_3: [2, 32, 16] = view.default(mm_3, [2, 32, 16])
permute_2: [4, 16] = permute.default(primals_1, [1, 0])
mm_4: [4, 48] = mm.default(permute_2, mm_2)
permute_3: [48, 4] = permute.default(primals_2, [1, 0])
mm_5: [16, 4] = mm.default(mm_2, permute_3)
return view_1, mm_5, mm_4, view_3""",
            train=True,
        )

    def test_einsum_before(self) -> None:
        self.assertExpectedInline(
            lines_of(graph_of("Einsum").graph),
            """\
arg0_1: [16, 4]
arg1_1: [2, 32, 16]
arg2_1: [4, 48]
unsqueeze: [2, 32, 16, 1] = unsqueeze.default(arg1_1, 3)
unsqueeze_1: [16, 4, 1] = unsqueeze.default(arg0_1, 2)
unsqueeze_2: [16, 4, 1, 1] = unsqueeze.default(unsqueeze_1, 3)
view: [1, 64, 16] = view.default(unsqueeze, [1, 64, 16])
view_1: [1, 16, 4] = view.default(unsqueeze_2, [1, 16, 4])
bmm: [1, 64, 4] = bmm.default(view, view_1)
view_2: [2, 32, 1, 4] = view.default(bmm, [2, 32, 1, 4])
permute_4: [2, 32, 4, 1] = permute.default(view_2, [0, 1, 3, 2])
view_3: [2, 32, 4] = view.default(permute_4, [2, 32, 4])
unsqueeze_3: [2, 32, 4, 1] = unsqueeze.default(view_3, 3)
unsqueeze_4: [4, 48, 1] = unsqueeze.default(arg2_1, 2)
unsqueeze_5: [4, 48, 1, 1] = unsqueeze.default(unsqueeze_4, 3)
view_4: [1, 64, 4] = view.default(unsqueeze_3, [1, 64, 4])
view_5: [1, 4, 48] = view.default(unsqueeze_5, [1, 4, 48])
bmm_1: [1, 64, 48] = bmm.default(view_4, view_5)
view_6: [2, 32, 1, 48] = view.default(bmm_1, [2, 32, 1, 48])
permute_9: [2, 32, 48, 1] = permute.default(view_6, [0, 1, 3, 2])
view_7: [2, 32, 48] = view.default(permute_9, [2, 32, 48])
return view_7""",
        )

    def test_einsum(self) -> None:
        self.check(
            "Einsum",
            """\
# matrix bmm, 0 bytes: a batch of one product is a product
# matrix bmm_1, 0 bytes: a batch of one product is a product
arg0_1: [16, 4]
arg1_1: [2, 32, 16]
arg2_1: [4, 48]
view_default_10: [64, 16] = view.default(arg1_1, [64, 16])
mm_default: [64, 4] = mm.default(view_default_10, arg0_1)
mm_default_1: [64, 48] = mm.default(mm_default, arg2_1)
view_default_11: [2, 32, 48] = view.default(mm_default_1, [2, 32, 48])
return view_default_11""",
        )

    def test_einsum_joint(self) -> None:
        self.check(
            "Einsum",
            """\
# matrix bmm, 0 bytes: a batch of one product is a product
# matrix bmm_1, 0 bytes: a batch of one product is a product
# matrix bmm_2, 0 bytes: a batch of one product is a product
# matrix bmm_3, 0 bytes: a batch of one product is a product
# matrix bmm_4, 0 bytes: a batch of one product is a product
# matrix bmm_5, 0 bytes: a batch of one product is a product
primals_1: [16, 4]
primals_2: [2, 32, 16]
primals_3: [4, 48]
tangents_1: [2, 32, 48]
view_default_20: [64, 16] = view.default(primals_2, [64, 16])
mm_default: [64, 4] = mm.default(view_default_20, primals_1)
mm_default_1: [64, 48] = mm.default(mm_default, primals_3)
view_default_21: [2, 32, 48] = view.default(mm_default_1, [2, 32, 48])
permute_default: [4, 64] = permute.default(mm_default, [1, 0])
view_default_22: [64, 48] = view.default(tangents_1, [64, 48])
mm_default_2: [4, 48] = mm.default(permute_default, view_default_22)
permute_default_1: [48, 4] = permute.default(primals_3, [1, 0])
mm_default_3: [64, 4] = mm.default(view_default_22, permute_default_1)
permute_default_2: [16, 64] = permute.default(view_default_20, [1, 0])
mm_default_4: [16, 4] = mm.default(permute_default_2, mm_default_3)
permute_default_3: [4, 16] = permute.default(primals_1, [1, 0])
mm_default_5: [64, 16] = mm.default(mm_default_3, permute_default_3)
view_default_25: [2, 32, 16] = view.default(mm_default_5, [2, 32, 16])
return view_default_21, mm_default_4, view_default_25, mm_default_2""",
            train=True,
        )

    def test_batch_of_one(self) -> None:
        self.check(
            "BatchOfOne",
            """\
# matrix bmm, 0 bytes: a batch of one product is a product
# matrix bmm_1, 0 bytes: a batch of one product is a product
arg0_1: [2, 32, 16]
arg1_1: [16, 4]
arg2_1: [4, 48]
view_default: [64, 16] = view.default(arg0_1, [64, 16])
mm_default: [64, 4] = mm.default(view_default, arg1_1)
mm_default_1: [64, 48] = mm.default(mm_default, arg2_1)
view_default_1: [2, 32, 48] = view.default(mm_default_1, [2, 32, 48])
return view_default_1""",
        )

    def test_per_head_before(self) -> None:
        self.assertExpectedInline(
            lines_of(graph_of("PerHead").graph),
            """\
arg0_1: [16, 6]
arg1_1: [2, 32, 16]
arg2_1: [2, 3, 8]
unsqueeze: [2, 32, 16, 1] = unsqueeze.default(arg1_1, 3)
unsqueeze_1: [16, 6, 1] = unsqueeze.default(arg0_1, 2)
unsqueeze_2: [16, 6, 1, 1] = unsqueeze.default(unsqueeze_1, 3)
view: [1, 64, 16] = view.default(unsqueeze, [1, 64, 16])
view_1: [1, 16, 6] = view.default(unsqueeze_2, [1, 16, 6])
bmm: [1, 64, 6] = bmm.default(view, view_1)
view_2: [2, 32, 1, 6] = view.default(bmm, [2, 32, 1, 6])
permute_4: [2, 32, 6, 1] = permute.default(view_2, [0, 1, 3, 2])
view_3: [2, 32, 6] = view.default(permute_4, [2, 32, 6])
view_4: [2, 32, 2, 3] = view.default(view_3, [2, 32, 2, 3])
unsqueeze_3: [2, 32, 2, 3, 1] = unsqueeze.default(view_4, 4)
permute_5: [2, 2, 32, 1, 3] = permute.default(unsqueeze_3, [0, 2, 1, 4, 3])
unsqueeze_4: [2, 3, 8, 1] = unsqueeze.default(arg2_1, 3)
unsqueeze_5: [2, 3, 8, 1, 1] = unsqueeze.default(unsqueeze_4, 4)
permute_7: [2, 2, 32, 3, 1] = permute.default(permute_5, [1, 0, 2, 4, 3])
view_5: [2, 64, 3] = view.default(permute_7, [2, 64, 3])
view_6: [2, 3, 8] = view.default(unsqueeze_5, [2, 3, 8])
bmm_1: [2, 64, 8] = bmm.default(view_5, view_6)
view_7: [2, 2, 32, 1, 8] = view.default(bmm_1, [2, 2, 32, 1, 8])
permute_9: [2, 2, 32, 8, 1] = permute.default(view_7, [1, 0, 2, 4, 3])
view_8: [2, 2, 32, 8] = view.default(permute_9, [2, 2, 32, 8])
return view_8""",
        )

    def test_per_head(self) -> None:
        self.check(
            "PerHead",
            """\
# matrix bmm, 0 bytes: a batch of one product is a product
arg0_1: [16, 6]
arg1_1: [2, 32, 16]
arg2_1: [2, 3, 8]
view_default_10: [64, 16] = view.default(arg1_1, [64, 16])
mm_default: [64, 6] = mm.default(view_default_10, arg0_1)
view_default_11: [64, 2, 3] = view.default(mm_default, [64, 2, 3])
permute_default: [2, 64, 3] = permute.default(view_default_11, [1, 0, 2])
bmm_1: [2, 64, 8] = bmm.default(permute_default, arg2_1)
view_default_9: [2, 2, 32, 8] = view.default(bmm_1, [2, 2, 32, 8])
permute_default_1: [2, 2, 32, 8] = permute.default(view_default_9, [1, 0, 2, 3])
return permute_default_1""",
        )

    def test_feed_forward(self) -> None:
        self.check(
            "FeedForward",
            """\
arg0_1: [4, 16]
arg1_1: [2, 32, 16]
arg2_1: [48, 4]
arg3_1: [48]
arg4_1: [4, 48]
arg5_1: [16, 4]
arg6_1: [16]
permute: [16, 4] = permute.default(arg0_1, [1, 0])
view: [64, 16] = view.default(arg1_1, [64, 16])
mm: [64, 4] = mm.default(view, permute)
permute_1: [4, 48] = permute.default(arg2_1, [1, 0])
addmm: [64, 48] = addmm.default(arg3_1, mm, permute_1)
view_3: [2, 32, 48] = view.default(addmm, [2, 32, 48])
mul: [2, 32, 48] = mul.Tensor(view_3, 0.5)
mul_1: [2, 32, 48] = mul.Tensor(view_3, 0.7071067811865476)
erf: [2, 32, 48] = erf.default(mul_1)
add: [2, 32, 48] = add.Tensor(erf, 1)
mul_2: [2, 32, 48] = mul.Tensor(mul, add)
permute_2: [48, 4] = permute.default(arg4_1, [1, 0])
view_4: [64, 48] = view.default(mul_2, [64, 48])
mm_1: [64, 4] = mm.default(view_4, permute_2)
permute_3: [4, 16] = permute.default(arg5_1, [1, 0])
addmm_1: [64, 16] = addmm.default(arg6_1, mm_1, permute_3)
view_7: [2, 32, 16] = view.default(addmm_1, [2, 32, 16])
return view_7""",
        )

    def test_swiglu(self) -> None:
        self.check(
            "SwiGLU",
            """\
arg0_1: [4, 16]
arg1_1: [2, 32, 16]
arg2_1: [48, 4]
arg3_1: [4, 16]
arg4_1: [48, 4]
arg5_1: [4, 48]
arg6_1: [16, 4]
permute: [16, 4] = permute.default(arg0_1, [1, 0])
view: [64, 16] = view.default(arg1_1, [64, 16])
mm: [64, 4] = mm.default(view, permute)
permute_1: [4, 48] = permute.default(arg2_1, [1, 0])
mm_1: [64, 48] = mm.default(mm, permute_1)
view_3: [2, 32, 48] = view.default(mm_1, [2, 32, 48])
neg: [2, 32, 48] = neg.default(view_3)
exp: [2, 32, 48] = exp.default(neg)
add: [2, 32, 48] = add.Tensor(exp, 1)
div: [2, 32, 48] = div.Tensor(view_3, add)
permute_2: [16, 4] = permute.default(arg3_1, [1, 0])
mm_2: [64, 4] = mm.default(view, permute_2)
permute_3: [4, 48] = permute.default(arg4_1, [1, 0])
mm_3: [64, 48] = mm.default(mm_2, permute_3)
view_7: [2, 32, 48] = view.default(mm_3, [2, 32, 48])
mul: [2, 32, 48] = mul.Tensor(div, view_7)
permute_4: [48, 4] = permute.default(arg5_1, [1, 0])
view_8: [64, 48] = view.default(mul, [64, 48])
mm_4: [64, 4] = mm.default(view_8, permute_4)
permute_5: [4, 16] = permute.default(arg6_1, [1, 0])
mm_5: [64, 16] = mm.default(mm_4, permute_5)
view_11: [2, 32, 16] = view.default(mm_5, [2, 32, 16])
return view_11""",
        )

    def test_attention(self) -> None:
        self.check(
            "EinsumAttention",
            """\
# matrix bmm, 0 bytes: a batch of one product is a product
# matrix bmm_2, 0 bytes: a batch of one product is a product
# matrix bmm_4, 0 bytes: a batch of one product is a product
# attention _scaled_dot_product_flash_attention_for_cpu, 12288 bytes: attends in 3 of 8 dimensions
arg0_1: [2, 1, 8]
arg1_1: [2, 32, 16]
arg2_1: [16, 6]
arg3_1: [2, 3, 8]
arg4_1: [2, 1, 8]
arg5_1: [16, 6]
arg6_1: [2, 3, 8]
arg7_1: [2, 1, 8]
arg8_1: [16, 6]
arg9_1: [2, 3, 8]
view_default_30: [64, 16] = view.default(arg1_1, [64, 16])
mm_default: [64, 6] = mm.default(view_default_30, arg2_1)
view_default_31: [64, 2, 3] = view.default(mm_default, [64, 2, 3])
permute_default: [2, 64, 3] = permute.default(view_default_31, [1, 0, 2])
mm_default_1: [64, 6] = mm.default(view_default_30, arg5_1)
mm_default_2: [64, 6] = mm.default(view_default_30, arg8_1)
permute_default_6: [2, 8, 3] = permute.default(arg6_1, [0, 2, 1])
bmm_default: [2, 3, 3] = bmm.default(arg3_1, permute_default_6)
bmm_default_1: [2, 64, 3] = bmm.default(permute_default, bmm_default)
expand_default: [1, 2, 1, 8] = expand.default(arg0_1, [1, 2, 1, 8])
clone_default: [1, 2, 1, 8] = clone.default(expand_default)
view_default_36: [2, 1, 8] = view.default(clone_default, [-1, 1, 8])
bmm_default_2: [2, 1, 3] = bmm.default(view_default_36, permute_default_6)
add_tensor: [2, 64, 3] = add.Tensor(bmm_default_1, bmm_default_2)
view_default_37: [2, 2, 32, 3] = view.default(add_tensor, [2, 2, 32, -1])
permute_default_7: [2, 2, 32, 3] = permute.default(view_default_37, [1, 0, 2, 3])
view_default_42: [2, 32, 2, 3] = view.default(mm_default_1, [2, 32, 2, 3])
permute_default_12: [2, 2, 32, 3] = permute.default(view_default_42, [0, 2, 1, 3])
view_default_43: [2, 32, 2, 3] = view.default(mm_default_2, [2, 32, 2, 3])
permute_default_13: [2, 2, 32, 3] = permute.default(view_default_43, [0, 2, 1, 3])
_scaled_dot_product_flash_attention_for_cpu_default = _scaled_dot_product_flash_attention_for_cpu.default(permute_default_7, permute_default_12, permute_default_13, 0.0, True)
getitem_2: [2, 2, 32, 3] = getitem(_scaled_dot_product_flash_attention_for_cpu_default, 0)
permute_default_10: [2, 2, 32, 3] = permute.default(getitem_2, [1, 0, 2, 3])
clone_default_1: [2, 2, 32, 3] = clone.default(permute_default_10)
view_default_40: [2, 64, 3] = view.default(clone_default_1, [2, -1, 3])
bmm_default_3: [2, 64, 8] = bmm.default(view_default_40, arg9_1)
view_default_41: [2, 2, 32, 8] = view.default(bmm_default_3, [2, 2, 32, -1])
permute_default_11: [2, 2, 32, 8] = permute.default(view_default_41, [1, 0, 2, 3])
add_tensor_1: [2, 2, 32, 8] = add.Tensor(permute_default_11, arg7_1)
permute_30: [2, 32, 2, 8] = permute.default(add_tensor_1, [0, 2, 1, 3])
clone: [2, 32, 2, 8] = clone.default(permute_30)
view_27: [2, 32, 16] = view.default(clone, [2, 32, 16])
return view_27""",
        )

    def test_monarch(self) -> None:
        self.check(
            "Monarch",
            """\
arg0_1: [4, 4, 4]
arg1_1: [2, 32, 16]
arg2_1: [4, 4, 12]
view_default: [64, 4, 4] = view.default(arg1_1, [64, 4, 4])
permute: [4, 64, 4] = permute.default(view_default, [1, 0, 2])
bmm: [4, 64, 4] = bmm.default(permute, arg0_1)
permute_default: [64, 4, 4] = permute.default(bmm, [1, 2, 0])
clone: [64, 4, 4] = clone.default(permute_default)
permute_3: [4, 64, 4] = permute.default(clone, [1, 0, 2])
bmm_1: [4, 64, 12] = bmm.default(permute_3, arg2_1)
permute_4: [64, 12, 4] = permute.default(bmm_1, [1, 2, 0])
clone_1: [64, 12, 4] = clone.default(permute_4)
view_3: [2, 32, 48] = view.default(clone_1, [2, 32, 48])
return view_3""",
        )

    def test_blast(self) -> None:
        self.check(
            "BLAST",
            """\
arg0_1: [4, 4, 4]
arg1_1: [2, 32, 16]
arg2_1: [4, 4, 1, 4]
arg3_1: [4, 4, 12]
view: [64, 4, 4] = view.default(arg1_1, [-1, 4, 4])
permute: [4, 64, 4] = permute.default(view, [1, 0, 2])
bmm: [4, 64, 4] = bmm.default(permute, arg0_1)
unsqueeze: [1, 4, 64, 4] = unsqueeze.default(bmm, 0)
mul: [4, 4, 64, 4] = mul.Tensor(unsqueeze, arg2_1)
sum_1: [4, 64, 4] = sum.dim_IntList(mul, [1])
bmm_1: [4, 64, 12] = bmm.default(sum_1, arg3_1)
permute_1: [64, 4, 12] = permute.default(bmm_1, [1, 0, 2])
clone: [64, 4, 12] = clone.default(permute_1)
view_1: [2, 32, 48] = view.default(clone, [2, 32, 48])
return view_1""",
        )

    def test_sltrain(self) -> None:
        self.check(
            "SLTrain",
            """\
# scale mul, 3072 bytes: scales arg0_1 in place of mm
arg0_1: [48, 4]
arg1_1: [4, 16]
arg2_1: [38]
arg3_1: [38]
arg4_1: [2, 32, 16]
mul_tensor: [48, 4] = mul.Tensor(arg0_1, 2.0)
mm_default: [48, 16] = mm.default(mul_tensor, arg1_1)
full: [48, 16] = full.default([48, 16], 0)
full_default: [768] = full.default([768], 0.0)
scatter_add: [768] = scatter_add.default(full_default, 0, arg2_1, arg3_1)
view_1: [48, 16] = view.default(scatter_add, [48, 16])
add: [48, 16] = add.Tensor(mm_default, view_1)
permute: [16, 48] = permute.default(add, [1, 0])
view_2: [64, 16] = view.default(arg4_1, [64, 16])
mm_1: [64, 48] = mm.default(view_2, permute)
view_3: [2, 32, 48] = view.default(mm_1, [2, 32, 48])
return view_3""",
        )
