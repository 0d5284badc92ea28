"""The gallery of many images: how long it takes to write, and how quick a browser is with it.

python benchmarks/gallery.py IMAGES captions.csv --work DIR [--chromium chromium]

CAPTIONS is what `captionmill caption IMAGES` wrote. Chromium runs without a window and is controlled over its
DevTools protocol. A "long task" is 50 ms and more for which the page could not react (W3C, Long Tasks API). `ready` is
when the first cards can be seen and filtered; `loaded` when the last thumbnail is there. "Of a core" is processor
time, in the browser that of the page's main thread: beside other programs it is more reliable than a clock.
Screenshots go to DIR.
"""

import argparse
import asyncio
import base64
import json
import resource
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from captionmill.data.images.find import find_images
from captionmill.data.tables.formats import read_captions
from captionmill.data.tables.rows import CaptionRow
from captionmill.pipeline.pages.gallery import write_gallery

Send = Callable[..., Awaitable[dict[str, Any]]]

WATCH = """
window.tasks = [];
new PerformanceObserver(list => tasks.push(...list.getEntries().map(entry => entry.duration)))
  .observe({ type: "longtask", buffered: true });
const wait = setInterval(() => {
  if (!document.querySelector("#cards img")) return;
  window.readyAt = performance.now();
  clearInterval(wait);
}, 5);
"""
FRAMES = (
    "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start))))"
)
FILTER = """(async () => { const start = performance.now(), query = document.querySelector("#query");
query.value = WORD; query.dispatchEvent(new Event("input")); await new Promise(done => setTimeout(done, 80));
return await FRAMES; })()""".replace("FRAMES", FRAMES)
SORT = """(async () => { const start = performance.now(), sort = document.querySelector("#sort");
sort.value = sort.options[1].value; sort.dispatchEvent(new Event("change")); return await FRAMES; })()""".replace(
    "FRAMES", FRAMES
)
SCROLL = """(async () => { let most = 0, frames = 0;
for (let y = 0; y < document.body.scrollHeight && frames < 200; y += STEP, frames += 1) {
  scrollTo(0, y); await new Promise(requestAnimationFrame);
  most = Math.max(most, document.querySelectorAll(".card").length); }
return { most, frames }; })()"""

KEYS = """(async () => { const times = [];
for (let number = 0; number < 50; number += 1) { const start = performance.now();
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: KEY, bubbles: true, cancelable: true }));
  times.push(await FRAMES); }
times.sort((left, right) => left - right); return [times[25], times.at(-1)]; })()""".replace("FRAMES", FRAMES)


def write(images_path: Path, rows: list[CaptionRow], page_path: Path) -> None:
    images = find_images(images_path)
    started, cpu_started = time.perf_counter(), time.process_time()
    write_gallery(page_path, f"Captions of {images_path.resolve().name}", images, rows)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    megabytes = page_path.stat().st_size / 1e6
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    cost = f"{seconds:.0f} s, of a core {cpu_s:.0f} s, peak {peak_gb:.2f} GB"
    print(f"| written | {len(rows):,} images, {megabytes:.1f} MB | {cost} |", flush=True)


async def measure(send: Send, page_path: Path, shots_dir: Path) -> None:
    async def evaluate(expression: str) -> Any:
        answer = await send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise SystemExit(json.dumps(answer["exceptionDetails"], indent=1))
        return answer["result"].get("value")

    async def longest_task() -> str:
        await asyncio.sleep(0.3)
        tasks = await evaluate("tasks.splice(0)")
        return f"{len(tasks)} long tasks" + (f", the longest {max(tasks):.0f} ms" if tasks else "")

    async def main_thread_s() -> float:
        metrics = (await send("Performance.getMetrics"))["metrics"]
        return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))

    async def shoot(name: str, width: int = 1360, height: int = 900, dark: bool = False, phone: bool = False) -> None:
        await send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await send("Emulation.setEmulatedMedia", features=[feature])
        await asyncio.sleep(1)
        image = await send("Page.captureScreenshot")
        (shots_dir / f"{name}.png").write_bytes(base64.b64decode(image["data"]))

    async def go(fragment: str) -> None:
        await evaluate(f"location.hash = {json.dumps(fragment)}; scrollTo(0, 0)")
        await asyncio.sleep(0.5)

    await send("Page.enable")
    await send("Performance.enable", timeDomain="threadTicks")
    await send("Emulation.setDeviceMetricsOverride", width=1360, height=900, deviceScaleFactor=1, mobile=False)
    await send("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
    await send("Page.navigate", url=page_path.resolve().as_uri())
    while not await evaluate("document.readyState === 'complete' && window.readyAt > 0"):
        await asyncio.sleep(0.1)
    ready, loaded = await evaluate("[readyAt, performance.getEntriesByType('navigation')[0].loadEventEnd]")
    opened = f"ready {ready / 1000:.2f} s, loaded {loaded / 1000:.2f} s, of a core {await main_thread_s():.2f} s"
    print(f"| opened | {opened} | {await longest_task()} |", flush=True)
    for word in ("dog", '"a man" -beach', "zzz", ""):
        before = await main_thread_s()
        took = await evaluate(FILTER.replace("WORD", json.dumps(word)))
        cost_ms = 1000 * (await main_thread_s() - before)
        status = await evaluate("document.querySelector('#status').textContent")
        shown = f"{status}, {took:.0f} ms after the key (80 of them waiting for another), of a core {cost_ms:.0f} ms"
        print(f"| filtered `{word}` | {shown} | {await longest_task()} |")
    took = await evaluate(SORT)
    print(f"| sorted | {took:.0f} ms | {await longest_task()} |")
    for step in (300, 1200, 20000):
        before = await main_thread_s()
        seen = await evaluate(SCROLL.replace("STEP", str(step)))
        cost_ms = 1000 * (await main_thread_s() - before) / seen["frames"]
        what = f"{seen['frames']:,} frames of {step:,} pixels, of a core {cost_ms:.0f} ms per frame"
        print(f"| scrolled | {what}, at most {seen['most']} cards | {await longest_task()} |", flush=True)
    await go("")
    await evaluate("document.querySelector('.card').click()")
    for key, what in (("a", "accepted"), ("l", "left for later"), ("n", "next unreviewed"), ("u", "undone")):
        before = await main_thread_s()
        middle, longest = await evaluate(KEYS.replace("KEY", json.dumps(key)))
        cost_ms = 1000 * (await main_thread_s() - before) / 50
        took = f"{middle:.0f} ms until drawn, at most {longest:.0f} ms, of a core {cost_ms:.0f} ms"
        print(f"| reviewed | 50 times `{key}` ({what}): {took} each | {await longest_task()} |", flush=True)
    await evaluate("document.querySelector('#large').close()")
    await send("HeapProfiler.collectGarbage")
    heap = await send("Runtime.getHeapUsage")
    print(f"| heap | {heap['usedSize'] / 1e6:.0f} MB | |")

    await go("")
    await shoot("light")
    await shoot("dark", dark=True)
    await shoot("phone", 390, 844, phone=True)
    await go("q=dog+-snow")
    await shoot("filtered")
    await go("show=failed")
    await evaluate("document.querySelector('#failures').open = true")
    await shoot("failures")
    await evaluate("document.querySelector('#failures').open = false")
    await go("q=dog")
    await evaluate("document.querySelectorAll('.card')[1].click()")
    await shoot("large")
    await shoot("large-phone", 390, 844, dark=True, phone=True)


async def browse(chromium: str, page_path: Path, work_dir: Path) -> None:
    profile_dir = work_dir / "profile"
    port_path = profile_dir / "DevToolsActivePort"
    port_path.unlink(missing_ok=True)
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    words += ["--remote-debugging-port=0", f"--user-data-dir={profile_dir}", "about:blank"]
    process = subprocess.Popen([chromium, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not port_path.exists() or not port_path.read_text():
            await asyncio.sleep(0.1)
        port = port_path.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                targets = await answer.json(content_type=None)
            url = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
            async with session.ws_connect(url, max_msg_size=0) as socket:
                sent = 0

                async def send(method: str, **parameters: Any) -> dict[str, Any]:
                    nonlocal sent
                    sent += 1
                    await socket.send_json({"id": sent, "method": method, "params": parameters})
                    while (message := await socket.receive_json()).get("id") != sent:
                        pass  # an event
                    if "error" in message:
                        raise SystemExit(f"{method}: {message['error']}")
                    result: dict[str, Any] = message["result"]
                    return result

                await measure(send, page_path, work_dir)
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--page", type=Path, help="measure this page instead of writing one")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    print("| step | | |\n|---|---|---|")
    page_path = arguments.page or arguments.work / "gallery.html"
    if not arguments.page:
        rows = [
            CaptionRow(row.path, row.caption, row.confidence, status=row.status, error=row.error)
            for row in read_captions(arguments.captions)
        ]
        write(arguments.images, rows[:1000], page_path)
        write(arguments.images, rows, page_path)
    asyncio.run(browse(arguments.chromium, page_path, arguments.work))


if __name__ == "__main__":
    main()
