"""The line that is a paper's setting: docs/make_pages.py writes docs/papers.md from it.

Each entry is (paper, what, line). A paper is a method, a preset or a schedule, whose reference the library has (of a
method with two papers ``NAME/2`` is the second), or a reference. Entries of one paper share its row.
"""

LINES: tuple[tuple[str, str, str], ...] = (
    ("teacher_forcing", "", "fr.teacher_forcing()"),
    ("scheduled_sampling", "", "fr.scheduled_sampling(inverse_sigmoid(k=1000))"),
    ("falling", "scaled to a run", "fr.falling(100_000)"),
    ("free_running", "always sampling", "fr.free_running()"),
    ("token_noise", "uniform scheduled sampling", "fr.token_noise(linear(start=0.0, end=0.25, steps=50_000))"),
    (
        "confusion_noise",
        "a control of freerun's, with the confusions of an arm",
        'fr.control("confusion", "scheduled sampling")',
    ),
    ("rising", "scaled to a run", "fr.rising(100_000)"),
    ("two_pass", "", 'fr.two_pass(exponential(k=0.9999), mix="expected")'),
    ("parallel", "", "fr.parallel(linear(start=1.0, end=0.5, steps=50_000), passes=2)"),
    ("confidence_aware", "", "fr.confidence_aware()"),
    ("token_noise/2", "its noise alone", 'fr.token_noise(0.1, noise="same_sentence")'),
    (
        "Liu, Y., Meng, F., Chen, Y., Xu, J. and Zhou, J. (2021). Scheduled sampling based on decoding steps for "
        "neural machine translation. EMNLP. arXiv:2108.12963",
        "by decoding and training steps",
        'fr.two_pass(inverse_sigmoid(k=20_000), mix="expected", gate=fr.gates.decoding_steps())',
    ),
    (
        "Liu, Y., Meng, F., Chen, Y., Xu, J. and Zhou, J. (2021). Scheduled sampling based on decoding steps for "
        "neural machine translation. EMNLP. arXiv:2108.12963",
        "by decoding steps alone",
        'fr.two_pass(0.0, mix="expected", gate=fr.gates.decoding_steps())',
    ),
    (
        "Cen, Z., Liu, Y., Zeng, S., Chaudhari, P., Rangwala, H., Karypis, G. and Fakoor, R. (2025). Bridging the "
        "training-inference gap in LLMs by leveraging self-generated tokens. TMLR. arXiv:2410.14655",
        "its batch-scheduled sampling, whose own entries are made before training there; its correction by reference "
        "answers is not here",
        "fr.scheduled_sampling(0.8)",
    ),
    (
        "Goyal, K., Dyer, C. and Berg-Kirkpatrick, T. (2017). Differentiable scheduled sampling for credit "
        "assignment. ACL. arXiv:1704.06970",
        "",
        "fr.scheduled_sampling(inverse_sigmoid(k=1000), draw=fr.draws.soft_argmax(alpha=10.0))",
    ),
    ("unlikelihood", "token level", "fr.unlikelihood()"),
    ("unlikelihood", "sequence level", 'fr.unlikelihood(level="sequence")'),
    ("optimal_completion", "", "fr.optimal_completion(end=0)"),
    ("gkd", "", 'fr.gkd(0.5, gate="sequence", teacher=teacher)'),
    (
        "Shenfeld et al. (2026). Self-distillation enables continual learning. arXiv:2601.19897",
        "[with the demonstration before the teacher](on-policy.md)",
        "fr.gkd(0.0, beta=1.0, teacher=teacher)",
    ),
    (
        "Kim, Y. and Rush, A. M. (2016). Sequence-level knowledge distillation. EMNLP. arXiv:1606.07947",
        "by word; by sequence it is teacher forcing on what the teacher has generated",
        "fr.gkd(1.0, beta=0.0, teacher=teacher)",
    ),
    (
        "Lin, A., Wohlwend, J., Chen, H. and Lei, T. (2020). Autoregressive knowledge distillation through imitation "
        "learning. EMNLP. arXiv:2009.07253",
        "ImitKD with the teacher's full distribution, over 80,000 updates",
        'fr.gkd(exponential(k=0.005 ** (1 / 80_000)), gate="sequence", beta=0.0, draw="greedy", teacher=teacher)',
    ),
    ("professor_forcing", "", "fr.professor_forcing()"),
    ("dagger", "", 'fr.dagger(table(values=[1.0, 0.0], unit="epoch"), expert=expert)'),
    (
        "Makarov, P. and Clematide, S. (2018). Imitation learning for neural morphological string transduction. EMNLP. "
        "arXiv:1808.10701",
        "with symbols in place of edit actions; k is its code's default, and 1 in the SIGMORPHON 2021 baseline",
        'fr.dagger(inverse_sigmoid(k=12, unit="epoch"), expert="optimal_completion")',
    ),
    ("consistency", "", "fr.consistency(linear(start=1.0, end=0.5, steps=50_000))"),
    ("minimum_risk", "", 'fr.minimum_risk("bleu", num_samples=100, end=0)'),
    (
        "Edunov, S., Ott, M., Auli, M., Grangier, D. and Ranzato, M. (2018). Classical structured prediction losses "
        "for sequence to sequence learning. NAACL. arXiv:1711.04956",
        "its risk loss, by samples and with probabilities of full sequences; "
        "[its code has other weights](coming-from.md#faults-of-the-other-systems)",
        'fr.minimum_risk("bleu", num_samples=16, alpha=1.0, include_gold=False, end=0)',
    ),
    (
        "Prabhavalkar, R. et al. (2018). Minimum word error rate training for attention-based sequence-to-sequence "
        "models. ICASSP. arXiv:1712.01818",
        "N-best by samples, which each count once",
        "fr.minimum_risk(num_samples=4, alpha=1.0, include_gold=False, end=0)",
    ),
    ("self_critical", "", "fr.self_critical(cost, end=0)"),
    (
        "Ranzato, M., Chopra, S., Auli, M. and Zaremba, W. (2016). Sequence level training with recurrent neural "
        "networks. ICLR. arXiv:1511.06732",
        "MIXER, but for its learnt baseline",
        'fr.self_critical("bleu", gate="prefix", teacher_forcing_ratio=linear(start=1.0, end=0.0, steps=50_000), '
        "end=0)",
    ),
    ("raml", "", "fr.raml(0.8, end=0)"),
    ("sentence_oracle", "sentence level", 'fr.sentence_oracle(inverse_sigmoid(k=15, unit="epoch"), end=0)'),
    ("sentence_oracle", "word level", 'fr.scheduled_sampling(inverse_sigmoid(k=15, unit="epoch"), draw="sample")'),
    ("teaforn", "", "fr.teaforn(passes=2, discount=0.5)"),
    ("word_dropout", "", "fr.word_dropout(0.75)"),
    ("no_history", "at keep rate 0, in use too: a control of freerun's", "fr.no_history()"),
    ("word_dropout/2", "", 'fr.word_dropout(0.75, each="symbol")'),
    ("multi_step", "", "fr.multi_step(horizon=8)"),
    (
        "multi_step/2",
        "",
        "fr.multi_step(horizon=join(schedules=[constant(1), linear(start=2, end=12, steps=10_000)], "
        "boundaries=[300_000]))",
    ),
    ("choice", "", "fr.multi_step(horizon=choice(values=(1, 4, 12), weights=(0.5, 0.3, 0.2)))"),
    ("pushforward", "", "fr.pushforward(horizon=2)"),
    ("replay_buffer", "", "fr.replay_buffer(0.5, capacity=256, age=8, horizon=1)"),
    ("sparse_teacher_forcing", "", "fr.sparse_teacher_forcing(tau=30)"),
    ("generalised_teacher_forcing", "", "fr.generalised_teacher_forcing()"),
    ("generalised_teacher_forcing/2", "", "fr.generalised_teacher_forcing(0.3)"),
    ("reverse_scheduled_sampling", "", "fr.methods.reverse(80_000)"),
    ("bptt_sa", "", "fr.methods.bptt_sa(100_000, length=20)"),
    ("data_as_demonstrator_online", "the present model's roll-outs alone", "fr.data_as_demonstrator_online()"),
    ("data_as_demonstrator_online", "as published: a function, not a method", "fr.data_as_demonstrator"),
    ("gaussian_noise", "", 'fr.gaussian_noise(6.7e-4, walk="velocities")'),
    ("diffusion_noise", "the next entry is predicted, not denoised", "fr.diffusion_noise(levels=1000)"),
    (
        "Huang, X., Li, Z., He, G., Zhou, M. and Shechtman, E. (2025). Self Forcing: bridging the train-test gap in "
        "autoregressive video diffusion. arXiv:2506.08009",
        "its roll-out, whose cache carries no gradient; its loss, on distributions of videos, is not here",
        "fr.free_running(gradient=1)",
    ),
    (
        "Guo, Y., Yang, C., He, H., Zhao, Y., Wei, M., Yang, Z., Huang, W. and Lin, D. (2025). End-to-end training for "
        "autoregressive video diffusion via self-resampling. arXiv:2512.15702 (Resampling Forcing)",
        "where a frame of the history is gold with noise that the model takes out",
        'fr.free_running(gradient="none")',
    ),
    (
        "Zhuang, J., Zhang, S., Bian, Y. et al. (2026). Self Gradient Forcing: native long video extrapolation. "
        "arXiv:2607.20368",
        "its two passes; its loss, on distributions of videos, is not here",
        'fr.free_running(gradient="none")',
    ),
)
