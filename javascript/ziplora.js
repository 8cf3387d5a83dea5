/* The tab's side in the browser, for the WebUI (which loads this file by itself) and for
   `python -m lib_ziplora serve`, where requestProgress and the txt2img tab do not exist. */
(function() {
    "use strict";
    if (window.ziplora) return;

    const TASK_KEY = "ziplora_task";
    const POLL_MS = 400;
    const WATCH_MS = 1500;
    const RESTORE_MS = 500;
    const RESTORE_TRIES = 40;
    const SETTLE_TRIES = 10;
    const CHECK_MS = 700;
    const STARTERS = "#ziplora_generate, #ziplora_reexport, #ziplora_matrix_run";
    let task = "";
    let followed = "";
    let timer = null;
    let watching = null;
    let checking = null;

    function find(selector) {
        const app = typeof window.gradioApp === "function" ? window.gradioApp() : document;
        return app.querySelector(selector);
    }

    function press(id) {
        const button = find("#" + id);
        if (button) button.click();
    }

    function inWebui() {
        return typeof window.requestProgress === "function";
    }

    function remember(ticket) {
        task = ticket;
        try {
            if (ticket) localStorage.setItem(TASK_KEY, ticket);
            else localStorage.removeItem(TASK_KEY);
        } catch (error) {
            console.warn("ZipLoRA: the browser stores nothing, so a reload forgets the merge", error);
        }
    }

    function remembered() {
        try {
            return localStorage.getItem(TASK_KEY) || "";
        } catch (error) {
            return "";
        }
    }

    // The WebUI's shortcuts (Ctrl+Enter, Alt+Enter, Esc) read style.display of these buttons.
    function showRunning(running) {
        for (const [id, shown] of [["generate", !running], ["check", !running], ["interrupt", running], ["skip", running]]) {
            const button = find("#ziplora_" + id);
            if (button) button.style.display = shown ? "block" : "none";
        }
        for (const id of ["reexport", "matrix_run", "compare"]) {
            const button = find("#ziplora_" + id);
            if (button) button.disabled = running;
        }
        const root = find("#ziplora_root");
        if (root) root.classList.toggle("ziplora-running", running);
    }

    function follow(ticket, restored) {
        remember(ticket);
        followed = ticket;
        showRunning(true);
        clearInterval(watching);
        watching = setInterval(() => press("ziplora_watch"), WATCH_MS);
        const ended = () => {
            if (task !== ticket) return;
            if (restored) {
                fetchOutcome(RESTORE_TRIES);
            } else if (inWebui()) {
                clearInterval(watching);
                showRunning(false);
            }
        };
        const anchor = find("#ziplora_bar");
        if (inWebui() && anchor) {
            window.requestProgress(ticket, anchor, null, ended, null, restored ? 0 : 40);
        } else {
            poll(ticket, ended);
        }
    }

    // A page that has just been loaded loses clicks until gradio listens: ask until there is an answer.
    function fetchOutcome(tries) {
        if (tries === 0 || find("#ziplora_result [data-outcome]")) {
            finished();
            return;
        }
        press("ziplora_restore");
        setTimeout(() => fetchOutcome(tries - 1), RESTORE_MS);
    }

    function poll(ticket, ended) {
        clearInterval(timer);
        let asked = false;
        timer = setInterval(() => {
            const state = barState();
            if (asked && (state === "finished" || state === "unknown")) {
                clearInterval(timer);
                ended();
                return;
            }
            if (state && state !== "finished" && state !== "unknown") asked = true;
            press("ziplora_poll");
        }, POLL_MS);
    }

    // An answer that was under way when the task ended may come last: ask until the bar knows.
    function settle(tries) {
        if (followed) press("ziplora_watch");
        if (inWebui()) return;
        press("ziplora_poll");
        setTimeout(() => {
            if (tries > 0 && !task && barState() !== "finished" && barState() !== "unknown") settle(tries - 1);
        }, POLL_MS);
    }

    // Whether a merge or a comparison has said how it ended (so).
    function answered(outcome) {
        const mark = outcome ? `[data-outcome="${outcome}"]` : "[data-outcome]";
        return find(`#ziplora_result ${mark}, #ziplora_compare_result ${mark}`);
    }

    function barState() {
        const bar = find("#ziplora_bar [data-state]");
        return bar ? bar.dataset.state : "";
    }

    function finished() {
        clearInterval(timer);
        clearInterval(watching);
        settle(SETTLE_TRIES);
        const box = find("#ziplora_result");
        if (box && box.scrollIntoView) box.scrollIntoView({block: "nearest"});
        // Without an answer (the server went away) the ticket is kept, so that the next page can ask.
        if (answered()) remember("");
        showRunning(false);
        setTimeout(() => {
            if (!answered("done")) return;
            press("ziplora_refresh");
            for (const tab of ["txt2img", "img2img"]) {
                const cards = find("#" + tab + "_lora_extra_refresh_internal");
                if (cards) cards.dispatchEvent(new Event("click"));
            }
        }, 300);
    }

    // What is told of a merge belongs to other settings now: tell it anew once nothing changes any more.
    function outdated() {
        if (!find("#ziplora_verdict .ziplora-box")) return;
        markOutdated(true);
        clearTimeout(checking);
        checking = setTimeout(() => {
            checking = null;
            if (!task && find("#ziplora_verdict .ziplora-box")) press("ziplora_recheck");
        }, CHECK_MS);
    }

    // The answer may be the same box as before, which the page then leaves as it is.
    function checked() {
        if (!checking) markOutdated(false);
    }

    function markOutdated(old) {
        const place = find("#ziplora_verdict");
        if (!place) return;
        place.classList.toggle("ziplora-outdated", old);
        place.setAttribute("aria-busy", old);
    }

    function noVerdict() {
        clearTimeout(checking);
        checking = null;
        markOutdated(false);
    }

    // A page that has just been loaded also shows a task that another page has begun.
    function askForRunning(tries) {
        const answer = find("#ziplora_running [data-ticket]");
        if (answer && answer.dataset.ticket && !task) follow(answer.dataset.ticket, true);
        if (answer || task || tries === 0) return;
        press("ziplora_ask");
        setTimeout(() => askForRunning(tries - 1), RESTORE_MS);
    }

    function tag() {
        const box = find("#ziplora_tag textarea, #ziplora_tag input");
        return box ? box.value : "";
    }

    function copyTag() {
        const box = find("#ziplora_tag textarea, #ziplora_tag input");
        if (!box) return;
        if (navigator.clipboard && window.isSecureContext) {
            navigator.clipboard.writeText(box.value);
        } else {
            box.select();
            document.execCommand("copy");
        }
    }

    function sendToTxt2img() {
        const prompt = find("#txt2img_prompt textarea");
        if (!prompt || !tag()) return;
        if (!prompt.value.includes(tag())) {
            prompt.value = (prompt.value.trimEnd() + " " + tag()).trimStart();
            window.updateInput(prompt);
        }
        window.switch_to_txt2img();
    }

    // values: the ticket, empty when the request was refused, then what the merge needs.
    window.submit_ziplora = function(count, ...values) {
        if (values[0]) follow(values[0], false);
        return values.slice(0, count);
    };

    window.ziplora = {finished, outdated, checked, copyTag, sendToTxt2img, ticket: () => [task], followed: () => [followed]};

    function start(root) {
        root.addEventListener("click", (event) => {
            if (event.target.closest(STARTERS)) noVerdict();
        }, true);
        if (find("#txt2img_prompt")) root.classList.add("ziplora-in-webui");
        showRunning(false);
        new IntersectionObserver((entries, observer) => {
            if (!entries.some((entry) => entry.isIntersecting)) return;
            observer.disconnect();
            press("ziplora_refresh");
        }).observe(root);
        if (remembered()) follow(remembered(), true);
        else askForRunning(RESTORE_TRIES);
    }

    const waiting = setInterval(() => {
        const root = find("#ziplora_root");
        if (!root || !find("#ziplora_bar")) return;
        clearInterval(waiting);
        start(root);
    }, 100);
})();
