#!lua flags=allow-oom
-- wake: puts back a marker that was popped for nobody
--
-- returns  nothing
-- again    there is at most one marker
-- uses: clock, news, record, effects

wake = true
apply()
return 0
