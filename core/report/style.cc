#include "report/style.h"

namespace aqhost {

const char* const kPageStyle = R"css(
:root{color-scheme:light dark;
--bg:#fdfdfb;--ink:#1c2126;--soft:#5d6670;--line:#dfe2e5;--card:#f4f5f3;--accent:#23638f;
--bad:#b23a22;--good:#2c7a4b;
--s0:#e6edf1;--s1:#cbdbe5;--s2:#a6c3d6;--s3:#7ca9c5;--s4:#5188ad;--s5:#2e668f;--s6:#15436a;
--c0:#3f7fae;--c1:#d98b3a;--c2:#6a9f5b;--c3:#8f6bb0;--c4:#c9666a;--c5:#4fa3a0;--c6:#a68a64;--c7:#9aa3ab}
@media screen and (prefers-color-scheme:dark){:root{
--bg:#14181c;--ink:#e4e6e8;--soft:#9aa4ad;--line:#2c343b;--card:#1c2227;--accent:#7db8e0;
--bad:#f0876c;--good:#79c796;
--s0:#1f2b34;--s1:#25404f;--s2:#2c566f;--s3:#37708f;--s4:#4d8fb4;--s5:#7db3d4;--s6:#bcdcf0;
--c0:#5b9bc9;--c1:#e0a05c;--c2:#86b878;--c3:#ab8bc8;--c4:#dc8285;--c5:#6cbcb9;--c6:#bca37f;--c7:#7d8790}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:1rem/1.55 system-ui,"Segoe UI",Roboto,
"Helvetica Neue",Arial,"Liberation Sans",sans-serif;font-variant-numeric:tabular-nums}
main{max-width:70rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:2rem;line-height:1.2;margin:.2rem 0 .8rem;font-weight:650;overflow-wrap:anywhere}
h2{font-size:1.35rem;line-height:1.3;margin:3.2rem 0 .6rem;font-weight:650}
h3{font-size:1rem;margin:1.8rem 0 .5rem;font-weight:650;overflow-wrap:anywhere}
p{margin:.4rem 0;max-width:46rem;overflow-wrap:anywhere}
a{color:var(--accent)}
.kicker,nav,figcaption span,.note,.x,.y,.xt,.yt,.legend,summary{color:var(--soft)}
.kicker{font-size:.875rem;margin:0}
.lead{font-size:1.125rem}
nav{font-size:.875rem;margin:1.6rem 0 0;display:flex;flex-wrap:wrap;gap:.3rem 1.1rem}
nav a{color:inherit;text-underline-offset:.2em}
.tiles{display:grid;grid-template-columns:1fr 1fr;gap:.75rem;margin:1.8rem 0 0}
@media(min-width:40rem){.tiles{grid-template-columns:repeat(3,1fr)}}
@media(min-width:64rem){.tiles{grid-template-columns:repeat(6,1fr)}}
@media(min-width:40rem){.tiles.four{grid-template-columns:repeat(4,1fr)}}
.tiles div{background:var(--card);border-radius:.5rem;padding:.8rem 1rem}
.tiles dt{font-size:.8125rem;color:var(--soft)}
.tiles dd{margin:0;font-size:1.375rem;font-weight:600;line-height:1.35;white-space:nowrap}
.tiles small{display:block;font-size:.8125rem;font-weight:400;color:var(--soft);line-height:1.35;white-space:normal}
.side{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:0 2.5rem}
.side>div{min-width:0}
.note{font-size:.875rem}
figure{margin:1.6rem 0 0}
figcaption{font-size:.875rem;margin-bottom:.7rem;max-width:46rem}
.plot{display:grid;grid-template-columns:auto minmax(0,1fr);gap:.25rem .6rem}
.x,.y,.xt,.yt{font-size:.75rem;line-height:1}
.y{display:flex;flex-direction:column;text-align:right;white-space:nowrap}
.ticks{justify-content:space-between;margin:-.5em 0}
.rows span{min-height:0;overflow:hidden;text-overflow:ellipsis;max-width:44vw}
.rows.each span{display:flex;align-items:center;justify-content:flex-end}
.x{grid-column:2;display:flex}
.x span{min-width:0}
.x.each{text-align:center}
.xt{grid-column:2;text-align:center}
.yt{text-align:right}
svg{display:block;width:100%}
path,line{vector-effect:non-scaling-stroke}
.line,.gap,.cross{fill:none}
.line{stroke:var(--line)}
.gap{stroke:var(--bg);stroke-width:1.5px}
.cross{stroke:var(--bad);stroke-width:1.25px}
.fine{stroke-width:.7px}
.s0{fill:var(--s0);background:var(--s0)}.s1{fill:var(--s1);background:var(--s1)}
.s2{fill:var(--s2);background:var(--s2)}.s3{fill:var(--s3);background:var(--s3)}
.s4{fill:var(--s4);background:var(--s4)}.s5{fill:var(--s5);background:var(--s5)}
.s6{fill:var(--s6);background:var(--s6)}
.c0{fill:var(--c0);background:var(--c0)}.c1{fill:var(--c1);background:var(--c1)}
.c2{fill:var(--c2);background:var(--c2)}.c3{fill:var(--c3);background:var(--c3)}
.c4{fill:var(--c4);background:var(--c4)}.c5{fill:var(--c5);background:var(--c5)}
.c6{fill:var(--c6);background:var(--c6)}.c7{fill:var(--c7);background:var(--c7)}
.legend{list-style:none;margin:.6rem 0 0;padding:0;font-size:.8125rem;display:flex;flex-wrap:wrap;gap:.15rem 1.1rem}
.legend i{display:inline-block;width:.75em;height:.75em;border-radius:.15em;margin-right:.4em}
.legend .mark{background:linear-gradient(45deg,transparent 43%,var(--bad) 43% 57%,transparent 57%),
linear-gradient(-45deg,transparent 43%,var(--bad) 43% 57%,transparent 57%)}
.scroll{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.875rem;line-height:1.35}
th,td{padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{font-weight:600;color:var(--soft);white-space:nowrap}
.t1 tr>:nth-child(n+2),.t2 tr>:nth-child(n+3),.t3 tr>:nth-child(n+4){text-align:right;white-space:nowrap}
.t2 td:nth-child(2){min-width:6rem}
details{font-size:.875rem;margin-top:.6rem}
summary{cursor:pointer}
details .scroll{max-height:24rem;overflow:auto}
.engine{border-top:1px solid var(--line);padding:.6rem 0}
.engine p{margin:0}
.engine ul{margin:.2rem 0;padding-left:1.2rem;font-size:.875rem;max-width:46rem;overflow-wrap:anywhere}
.yes{color:var(--good)}.no{color:var(--bad)}
pre{background:var(--card);border-radius:.5rem;padding:.8rem 1rem;font:.8125rem/1.5 ui-monospace,Menlo,Consolas,
"Liberation Mono",monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:.4rem 0}
footer{margin-top:3.5rem;border-top:1px solid var(--line);padding-top:.8rem}
@media print{@page{margin:15mm}
body{font-size:10pt;background:#fff}main{padding:0;max-width:none}nav,details{display:none}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
h1{font-size:20pt}h2{margin-top:1.6rem}h2,h3,figcaption{break-after:avoid}
figure,.tiles,.engine,tr{break-inside:avoid}.scroll{overflow:visible}.tiles dd{font-size:14pt}}
)css";

}  // namespace aqhost
