"""The systems of our sources that have no file in conf/algo, each with its arXiv number and the reason."""

NO_TREE = "needs a tool, a simulator or a search that would be a toy here"

LEFT_OUT = (
    (
        "iTool",
        "2501.09766",
        f"{NO_TREE}: tool-call data with gold calls and a tree search; its preference loss could not be read",
    ),
    ("MCTS-DPO's tree", "2405.00451", f"{NO_TREE}; its smoothed loss is `mcts_dpo`"),
    (
        "PIT's gap model",
        "2310.00898",
        "needs a reward model trained on ordered pairs, and a policy that reads the reference; the gap reward is `pit`",
    ),
    (
        "RLGF's AggreVaTeD, LOLS, D2LOLS",
        "2306.11816",
        "the guide would finish what the policy began, which needs a guide better than the reference; PPO++ is `rlgf`",
    ),
    (
        "T-PPO's windows",
        "2506.15050",
        "going on with a fragment in the next batch needs a sampler that keeps fragments; its advantages are `t_ppo`",
    ),
    (
        "Nash-MP's half step",
        "2505.19731",
        "needs a second copy of the weights that is trained besides, in a form that could not be verified; one phase is `nash_mp`",
    ),
    (
        "multi-turn environments (meow-tea-taro)",
        "2510.01132",
        f"{NO_TREE}: TextWorld, ALFWorld, SWE-Gym; its algorithms are `meow_tea_ppo` and `meow_tea_rloo`",
    ),
    ("tool calls of ASPO", "2508.19201", f"{NO_TREE}; the shaping is `aspo`, for any position in a response"),
    ("RLHS's simulator and judge", "2501.08617", f"{NO_TREE}; yours go into `opo.rewards.hindsight.hindsight`"),
    (
        "RLUF's reward models",
        "2505.14946",
        "trained on reactions of users of a product; the weighting is `reward.weights`",
    ),
    ("A2PR", "2405.19909", "another problem: offline control with Q functions"),
    ("FamO2O", "2310.17966", "another problem: offline to online control"),
    ("RIQL", "2310.12955", "another problem: offline control from damaged data"),
    ("PROTECTED", "2402.12673", "another problem: attacks on states in control"),
    ("PARL", "2308.02585", "another problem: a learned reward as the outer variable"),
    (
        "Actor-critics with optimal sample efficiency",
        "2505.03710",
        "another problem: exploration with a class of critics; no loss for language models",
    ),
    ("GROOVE", "2310.02782", "another problem: a learned update rule"),
    ("B2-DiffuRL", "2503.11240", "another problem: diffusion of images"),
    ("AWM", "2509.25050", "another problem: flow matching; with tokens it is REINFORCE"),
    ("GRPO-Guard", "2510.22319", "another problem: Gaussian steps, whose ratio has a known mean; tokens have none"),
    ("CRAFT-GUI", "2508.11360", "another problem: screenshots and actions; its easy-to-hard order is a curriculum"),
    ("AlphaOPT", "2510.18428", "no weights are updated"),
    ("AgentFly (Memento)", "2508.16153", "no weights are updated"),
    ("Ultimate Guide to Fine-Tuning LLMs", "2408.13296", "a survey"),
    ("Technical Survey of RL for LLMs", "2507.04136", "a survey"),
)
