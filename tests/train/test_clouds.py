import socket

import pytest

from rn50.errors import UsageError
from rn50.train import clouds
from rn50.train.clouds import Azure, Ec2, Gcp, detect, notice_service
from rn50.train.notices import Notice, UnavailableError
from servers import metadata

HOST = socket.gethostname()
TOKEN = "/latest/api/token"
ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"
EVENTS = "/metadata/scheduledevents"
NAME = "/metadata/instance/compute/name"


def poll(service):
    return list(service.poll())


def test_on_ec2_nothing_is_announced_by_404():
    with metadata() as server:
        assert poll(Ec2(server.url)) == []
    assert server.requests == [f"PUT {TOKEN}", f"GET {ACTION}", f"GET {REBALANCE}"]


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_an_interruption_on_ec2_stops_at_the_time_told(action):
    told = f'{{"action": "{action}", "time": "2026-11-21T16:20:00Z"}}'
    with metadata({ACTION: told}) as server:
        (notice,) = poll(Ec2(server.url))
    assert notice == Notice("EC2", f"EC2 will {action} {HOST}", "stop", "2026-11-21T16:20:00Z")


def test_a_rebalance_recommendation_saves_and_says_since_when():
    with metadata({REBALANCE: '{"noticeTime": "2026-11-21T16:20:00Z"}'}) as server:
        (notice,) = poll(Ec2(server.url))
    assert notice.action == "save"
    assert notice.text.endswith("raised risk of interruption since 2026-11-21T16:20:00Z")


def test_an_interruption_is_told_although_the_recommendation_is_garbage():
    answers = {ACTION: '{"action": "stop", "time": "soon"}', REBALANCE: "<html>"}
    with metadata(answers) as server:
        notices = Ec2(server.url).poll()
        assert next(notices) == Notice("EC2", f"EC2 will stop {HOST}", "stop", "")
        with pytest.raises(UnavailableError, match="no JSON object"):
            next(notices)


def test_one_token_serves_many_questions_and_is_renewed_before_it_ends(monkeypatch):
    with metadata() as server:
        service = Ec2(server.url)
        poll(service)
        poll(service)
        assert server.tokens == ["secret-0"]
        now = clouds.time.monotonic()
        monkeypatch.setattr(clouds.time, "monotonic", lambda: now + Ec2.token_s / 2)
        poll(service)
        assert server.tokens == ["secret-0", "secret-1"]


def test_a_token_that_is_no_longer_known_is_renewed_at_once():
    with metadata({REBALANCE: "{}"}) as server:
        service = Ec2(server.url)
        poll(service)
        server.tokens.append("of another life")
        (notice,) = poll(service)
    assert notice.text.endswith("raised risk of interruption")
    assert server.asked(TOKEN) == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("garbage", "no JSON object"),
        ("[1]", "no JSON object"),
        ("", "no JSON object"),
        ('{"action": "dance"}', "no known action"),
        ('{"action": "stop", "time":', "no JSON object"),
    ],
)
def test_what_is_no_interruption_stops_nothing(answer, message):
    with metadata({ACTION: answer}) as server, pytest.raises(UnavailableError, match=message):
        poll(Ec2(server.url))


@pytest.mark.parametrize("path", [TOKEN, ACTION])
def test_a_failing_service_is_unavailable(path):
    with metadata() as server:
        server.statuses[path] = 500
        with pytest.raises(UnavailableError, match="answered with status 500"):
            poll(Ec2(server.url))


def test_a_redirect_is_not_followed_with_the_token():
    with metadata() as server:
        server.statuses[ACTION] = 302
        with pytest.raises(UnavailableError, match="answered with status 302"):
            poll(Ec2(server.url))
    assert not server.asked("elsewhere")


def test_a_lost_token_is_explained_by_the_hop_limit(monkeypatch, tmp_path):
    (tmp_path / "board_asset_tag").write_text("i-0abc12de\n")
    monkeypatch.setattr(clouds, "DMI", tmp_path)
    with metadata() as server:
        server.silent.add(TOKEN)
        with pytest.raises(UnavailableError) as error:
            poll(Ec2(server.url, timeout_s=0.1))
    assert "hop limit" in str(error.value)
    assert str(error.value).endswith(
        "aws ec2 modify-instance-metadata-options --instance-id i-0abc12de "
        "--http-put-response-hop-limit 2"
    )


def test_a_service_that_is_switched_off_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(clouds, "DMI", tmp_path)
    with metadata() as server:
        server.statuses[TOKEN] = 403
        with pytest.raises(UnavailableError, match="--instance-id INSTANCE_ID --http-endpoint en"):
            poll(Ec2(server.url))


@pytest.mark.parametrize("token", ["a\r\nb", "", "x" * 2000, "é"])
def test_a_token_that_is_none_is_neither_sent_nor_shown(token):
    with metadata({TOKEN: token}) as server:
        with pytest.raises(UnavailableError, match="what it gives as a token is none"):
            poll(Ec2(server.url))
        assert not server.asked(ACTION)


def test_no_service_at_all_is_unavailable():
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UnavailableError, match=r"cannot be asked: .*refused"):
        poll(Ec2(url))


def test_proxies_are_not_asked(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with metadata({PREEMPTED: "FALSE", MAINTENANCE: "NONE"}) as server:
        assert poll(Gcp(server.url)) == []


def test_preemption_on_google_cloud_stops():
    with metadata({PREEMPTED: "TRUE", MAINTENANCE: "NONE"}) as server:
        (notice,) = poll(Gcp(server.url))
    assert (notice.action, notice.text) == ("stop", f"Google Cloud preempts {HOST} within 30 s")


@pytest.mark.parametrize("verb", ["migrate", "terminate"])
def test_maintenance_on_google_cloud_saves(verb):
    event = f"{verb.upper()}_ON_HOST_MAINTENANCE"
    with metadata({PREEMPTED: "FALSE\n", MAINTENANCE: event}) as server:
        (notice,) = poll(Gcp(server.url))
    assert notice.action == "save"
    assert f"will {verb} {HOST} for maintenance" in notice.text


def test_garbage_on_google_cloud_is_unavailable():
    with (
        metadata({PREEMPTED: "<html>TRUE</html>"}) as server,
        pytest.raises(UnavailableError, match="preempted was answered with no known value"),
    ):
        poll(Gcp(server.url))


def events(*kinds, resources=("vm-1",)):
    told = [
        f'{{"EventType": "{kind}", "Resources": ["{r}"], '
        '"NotBefore": "Sat, 21 Nov 2026 16:20:00 GMT"}'
        for kind in kinds
        for r in resources
    ]
    return f'{{"DocumentIncarnation": 1, "Events": [{", ".join(told)}]}}'


@pytest.mark.parametrize(
    ("kind", "action"),
    [("Preempt", "stop"), ("Terminate", "stop"), ("Reboot", "save"), ("Freeze", "save")],
)
def test_events_on_azure_stop_if_the_machine_goes_away_and_save_otherwise(kind, action):
    with metadata({EVENTS: events(kind), NAME: "VM-1"}) as server:
        (notice,) = poll(Azure(server.url))
    text = f"Azure announces '{kind}' of {HOST}"
    assert notice == Notice("Azure", text, action, "2026-11-21T16:20:00Z")


def test_events_of_other_machines_on_azure_are_passed_over():
    with metadata({EVENTS: events("Preempt", resources=("vm-2", "vm-3")), NAME: "vm-1"}) as server:
        assert poll(Azure(server.url)) == []


def test_an_event_on_azure_counts_while_the_machine_does_not_know_its_name():
    with metadata({EVENTS: events("Preempt"), NAME: "vm-9"}) as server:
        server.statuses[NAME] = 500
        service = Azure(server.url)
        assert len(poll(service)) == 1
        del server.statuses[NAME]
        assert poll(service) == []


@pytest.mark.parametrize("answer", ['{"Events": 5}', '{"Events": [5]}', "5"])
def test_garbage_on_azure_is_unavailable(answer):
    with metadata({EVENTS: answer}) as server, pytest.raises(UnavailableError):
        poll(Azure(server.url))


def test_azure_has_time_to_switch_its_events_on_but_once():
    with metadata({EVENTS: events(), NAME: "vm-1"}) as server:
        service = Azure(server.url, timeout_s=0.2)
        poll(service)
        server.silent.add(EVENTS)
        with pytest.raises(UnavailableError, match="not answered in time"):
            poll(service)


@pytest.mark.parametrize(
    ("fields", "cloud"),
    [
        ({"sys_vendor": "Amazon EC2", "product_name": "g5.xlarge"}, "ec2"),
        ({"sys_vendor": "Xen", "bios_version": "4.11.amazon"}, "ec2"),
        ({"sys_vendor": "Google", "product_name": "Google Compute Engine"}, "gcp"),
        (
            {
                "sys_vendor": "Microsoft Corporation",
                "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77",
            },
            "azure",
        ),
        ({"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine"}, "off"),
        ({"sys_vendor": "LENOVO", "product_name": "20XW"}, "off"),
        ({}, "off"),
    ],
)
def test_the_firmware_names_the_cloud(fields, cloud, tmp_path):
    for name, value in fields.items():
        (tmp_path / name).write_text(value + "\n")
    assert detect(tmp_path) == cloud
    found = notice_service("auto", environment={}, dmi=tmp_path)
    kinds = {"ec2": Ec2, "gcp": Gcp, "azure": Azure, "off": type(None)}
    assert type(found) is kinds[cloud]


def test_off_watches_nothing_wherever_it_runs(tmp_path):
    (tmp_path / "sys_vendor").write_text("Amazon EC2")
    assert notice_service("off", environment={}, dmi=tmp_path) is None


@pytest.mark.parametrize("wanted", ["auto", "ec2"])
def test_awss_own_switch_and_address_are_heeded(wanted, tmp_path):
    (tmp_path / "sys_vendor").write_text("Amazon EC2")
    off = {"AWS_EC2_METADATA_DISABLED": "True"}
    assert notice_service(wanted, environment=off, dmi=tmp_path) is None
    with metadata({REBALANCE: "{}"}) as server:
        there = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url + "/"}
        service = notice_service(wanted, environment=there, dmi=tmp_path)
        assert service is not None
        assert len(poll(service)) == 1


def test_an_address_that_is_none_is_refused():
    with pytest.raises(UsageError, match="RN50_METADATA_URL is 'file:///etc'; it must be the addr"):
        notice_service("ec2", environment={"RN50_METADATA_URL": "file:///etc"})
