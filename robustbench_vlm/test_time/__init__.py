"""Registry of the test-time defenses. To select a model with a test-time defense, write DEFENSE+MODEL."""

from robustbench_vlm.core.registry import Registry

TEST_TIME_DEFENSES = Registry(
    "test-time-defense",
    {
        "a-tpt": "robustbench_vlm.test_time.a_tpt:A_TPT",
        "a-tpt@16": "robustbench_vlm.test_time.a_tpt:A_TPT_16",
        "csr": "robustbench_vlm.test_time.csr:CSR",
        "dbd": "robustbench_vlm.test_time.dbd:DBD",
        "et3": "robustbench_vlm.test_time.et3:ET3",
        "ttc": "robustbench_vlm.test_time.ttc:TTC",
        "r-tpt": "robustbench_vlm.test_time.r_tpt:R_TPT",
        "r-tpt@16": "robustbench_vlm.test_time.r_tpt:R_TPT_16",
        "clipure-cos": "robustbench_vlm.test_time.clipure:CLIPURE_COS",
        "clipure-cos@short": "robustbench_vlm.test_time.clipure:CLIPURE_COS_SHORT",
    },
)
